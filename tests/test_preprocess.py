"""Images are resized, cropped and normalized as the checkpoint's processor does it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cleantune.backbones import ImagePreprocess, quiet_transformers, read_image_preprocess
from cleantune.errors import UserError


def preprocess(resample: int = 2, **settings) -> ImagePreprocess:
    return ImagePreprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample, **settings)


def image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize(("side", "size"), [(32, 96), (96, 32), (33, 50), (64, 64)])
def test_to_array_has_pixels_of_pillow(side, size, resample):
    expected = np.asarray(image(side, side).resize((size, size), Image.Resampling(resample)))
    actual = preprocess(resample, crop=(size, size), shortest_edge=size).to_array(image(side, side))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("height", "width", "box"), [(48, 96, (32, 8, 64, 40)), (96, 48, (8, 32, 40, 64))])
def test_to_array_crops_center_of_shortest_edge(height, width, box):
    actual = preprocess(crop=(32, 32), shortest_edge=48).to_array(image(height, width))
    np.testing.assert_array_equal(actual, np.asarray(image(height, width).crop(box)))


def test_to_array_pads_black_where_crop_exceeds_image():
    actual = preprocess(crop=(32, 32), shortest_edge=24).to_array(image(24, 24))
    np.testing.assert_array_equal(actual[4:28, 4:28], np.asarray(image(24, 24)))
    assert actual.sum(dtype=np.int64) == actual[4:28, 4:28].sum(dtype=np.int64)


PROCESSORS = [
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 20}, "resample": 3},
    {"image_processor_type": "ViTImageProcessor", "size": 24, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 20},
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": 24, "crop_size": 24},
    {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 20, "width": 20},
    },
    {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 25, "width": 27},
    },
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.875},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}, "resample": 3},
    {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 26},
        "crop_size": {"height": 24, "width": 24},
        "do_normalize": False,
    },
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}, "do_rescale": False},
]


def full_config(config: dict) -> dict:
    """Return the file as processors of transformers write it, with every switch."""
    kind = config.get("image_processor_type") or config["feature_extractor_type"]
    crops = kind.startswith(("CLIP", "Bit", "MobileNet"))
    return {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "resample": 2,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
        "do_center_crop": crops,
        **config,
    }


def image_of(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("config", PROCESSORS, ids=lambda c: "-".join(map(str, c.values()))[:60])
@pytest.mark.parametrize("shape", [(37, 61), (64, 40), (24, 24), (25, 23)])
def test_preprocess_equals_processors_of_transformers(config, shape, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(full_config(config)))
    processor = read_image_preprocess(tmp_path, None)
    with quiet_transformers():
        from transformers import AutoImageProcessor

        expected = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(image_of(*shape), return_tensors="pt")
    x = processor.normalize(torch.tensor(processor.to_array(image_of(*shape))).permute(2, 0, 1)[None])
    torch.testing.assert_close(x, expected["pixel_values"].float(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("config", PROCESSORS, ids=lambda c: "-".join(map(str, c.values()))[:60])
def test_to_config_is_read_back_unchanged(config, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(full_config(config)))
    processor = read_image_preprocess(tmp_path, None)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_config()))
    assert read_image_preprocess(tmp_path, None) == processor


def test_image_size_sets_shortest_edge_and_crop(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(full_config(PROCESSORS[4])))
    processor = read_image_preprocess(tmp_path, 16)
    image = image_of(32, 64)
    expected = np.asarray(image.resize((16, 32), Image.Resampling.BILINEAR))[8:24]
    np.testing.assert_array_equal(processor.to_array(image), expected)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_to_array_converts_every_mode_to_rgb(mode, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(full_config(PROCESSORS[0])))
    processor = read_image_preprocess(tmp_path, None)
    image = image_of(30, 30).convert(mode)
    np.testing.assert_array_equal(processor.to_array(image), processor.to_array(image.convert("RGB")))


def test_processor_config_with_nested_processor_is_read(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": full_config(PROCESSORS[2])}))
    assert read_image_preprocess(tmp_path, None).crop == (20, 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_center_crop": False}, "different sizes"),
        ({"do_pad": True}, "different sizes"),
        ({"image_mean": [0.5]}, "channels"),
    ],
)
def test_preprocess_of_varying_size_is_refused(change, words, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**full_config(PROCESSORS[2]), **change}))
    with pytest.raises(UserError, match=words):
        read_image_preprocess(tmp_path, None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1), (3, 3, 8, 1), (0, 3, 4, 4)])
def test_normalize_alike_in_both_memory_formats(shape, dtype):
    own = ImagePreprocess(crop=shape[2:], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.randint(0, 256, shape).to(dtype)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (own.mean, own.std))
    expected = (pixels.double() * own.scale - mean) / std
    for x in (pixels, channels_last):
        before = x.clone()
        actual = own.normalize(x)
        assert actual.is_contiguous() == x.is_contiguous()
        torch.testing.assert_close(actual, expected.float())
        assert torch.equal(x, before)
    assert torch.equal(own.normalize(pixels), own.normalize(channels_last))
