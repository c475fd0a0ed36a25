"""Images are resized, cropped and normalized as the checkpoint's processor does it."""

import numpy as np
import pytest
import torch
from PIL import Image

from cleantune.backbones import ImagePreprocess


def preprocess(resample: int = 2, **settings) -> ImagePreprocess:
    return ImagePreprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample, **settings)


def image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize(("side", "size"), [(32, 96), (96, 32), (33, 50), (64, 64)])
def test_array_has_pixels_of_pillow(side, size, resample):
    expected = np.asarray(image(side, side).resize((size, size), Image.Resampling(resample)))
    actual = preprocess(resample, crop=(size, size), shortest_edge=size).array(image(side, side))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("height", "width", "box"), [(48, 96, (32, 8, 64, 40)), (96, 48, (8, 32, 40, 64))])
def test_array_crops_center_of_shortest_edge(height, width, box):
    actual = preprocess(crop=(32, 32), shortest_edge=48).array(image(height, width))
    np.testing.assert_array_equal(actual, np.asarray(image(height, width).crop(box)))


def test_array_pads_black_where_crop_exceeds_image():
    actual = preprocess(crop=(32, 32), shortest_edge=24).array(image(24, 24))
    np.testing.assert_array_equal(actual[4:28, 4:28], np.asarray(image(24, 24)))
    assert actual.sum(dtype=np.int64) == actual[4:28, 4:28].sum(dtype=np.int64)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_array_converts_other_modes_to_rgb(mode):
    own, other = preprocess(crop=(96, 96), exact=(96, 96)), image(32, 32).convert(mode)
    np.testing.assert_array_equal(own.array(other), own.array(other.convert("RGB")))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1), (3, 3, 8, 1), (0, 3, 4, 4)])
def test_inputs_normalize_alike_in_both_memory_formats(shape, dtype):
    own = ImagePreprocess(crop=shape[2:], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.randint(0, 256, shape).to(dtype)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (own.mean, own.std))
    expected = (pixels.double() * own.scale - mean) / std
    for x in (pixels, channels_last):
        before = x.clone()
        actual = own.inputs(x)
        assert actual.stride() == x.stride() or x.numel() == 0
        torch.testing.assert_close(actual, expected.float())
        assert torch.equal(x, before)
    assert torch.equal(own.inputs(pixels), own.inputs(channels_last))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_inputs_reuse_memory_of_owned_float_pixels(dtype):
    own = preprocess(crop=(5, 7))
    pixels = torch.randint(0, 256, (2, 3, 5, 7)).to(dtype)
    expected = own.inputs(pixels)
    for x in (pixels.clone(), pixels.clone(memory_format=torch.channels_last)):
        actual = own.inputs(x, own=True)
        assert torch.equal(actual, expected)
        assert (actual.data_ptr() == x.data_ptr()) == (dtype == torch.float32)
