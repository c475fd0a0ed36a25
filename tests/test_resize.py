"""Pictures of one size are resized together to Pillow's own bits, or by Pillow itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from cleantune.backbones import ImagePreprocess
from cleantune.backbones.resize import _alike, resize_all


def preprocess(resample=2, **given) -> ImagePreprocess:
    return ImagePreprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample, **given)


def pictures(count: int, height: int, width: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize(("given", "size"), [(32, 96), (32, 64), (96, 32), (33, 50), (64, 64), (45, 20)])
def test_many_images_of_one_size_have_the_pixels_of_each_alone(given, size, resample):
    ours, images = preprocess(resample, crop=(size, size), shortest_edge=size), pictures(40, given, given)
    expected = [np.asarray(image.resize((size, size), Image.Resampling(resample))) for image in images]
    np.testing.assert_array_equal(list(ours.arrays(images)), expected)


@pytest.mark.parametrize("edge", [24, 48])
@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (30, 96)])
def test_crop_and_margin_are_those_of_each_alone(height, width, edge):
    ours, images = preprocess(crop=(32, 32), shortest_edge=edge), pictures(9, height, width)
    np.testing.assert_array_equal(list(ours.arrays(images)), [ours.array(image) for image in images])


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_three_channels_together_too(mode):
    ours, images = preprocess(crop=(96, 96), exact=(96, 96)), [p.convert(mode) for p in pictures(9, 32, 32)]
    np.testing.assert_array_equal(list(ours.arrays(images)), [ours.array(image) for image in images])


def test_sizes_at_which_torch_rounds_otherwise_are_left_to_pillow():
    assert resize_all(pictures(8, 227, 227), (80, 80), 2) is None


def test_large_pictures_are_resized_one_by_one():
    assert not _alike((2048, 2048), (1024, 1024), 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1), (3, 3, 8, 1), (0, 3, 4, 4)])
def test_pixels_are_normalized_alike_in_both_memory_formats(shape, dtype):
    own = ImagePreprocess(crop=shape[2:], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.randint(0, 256, shape).to(dtype)
    last = pixels.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (own.mean, own.std))
    expected = (pixels.double() * own.scale - mean) / std
    for given in (pixels, last):
        before = given.clone()
        made = own.inputs(given)
        assert made.stride() == given.stride() or given.numel() == 0
        torch.testing.assert_close(made, expected.float())
        assert torch.equal(given, before)
    assert torch.equal(own.inputs(pixels), own.inputs(last))
    expected = own.inputs(pixels)
    for given in (pixels.clone(), last.clone()):
        made = own.inputs(given, own=True)
        assert torch.equal(made, expected)
        assert (made.data_ptr() == given.data_ptr()) == (dtype == torch.float32 or given.numel() == 0)
