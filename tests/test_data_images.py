"""Pictures of every mode become RGB with the colors they show."""

import io

import numpy as np
import pytest
from PIL import Image

from cleantune.data.dataset import UnreadableImage
from cleantune.data.images import encode_png, load_image


def stored(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gradient(top: int) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8)


def test_load_image_scales_sixteen_bits():
    deep = gradient(65535).astype(np.uint16)
    picture = load_image(stored(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(np.asarray(picture)[..., 0], np.rint(deep * (255 / 65535)))
    assert picture.mode == "RGB"


@pytest.mark.parametrize("values", [gradient(65535).astype(np.int32), gradient(1).astype(np.float32)])
def test_load_image_scales_integers_and_floats(values):
    picture = load_image(stored(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(np.asarray(picture)[..., 1], np.rint(values * (255 / values.max())))


def test_load_image_converts_gray_palette_and_cmyk():
    red = Image.new("RGB", (4, 4), (250, 10, 20))
    for image, form in ((red.convert("P"), "PNG"), (red.convert("CMYK"), "TIFF"), (red.convert("RGBA"), "PNG")):
        picture = load_image(stored(image, form))
        assert picture.mode == "RGB"
        np.testing.assert_allclose(np.asarray(picture)[0, 0], (250, 10, 20), atol=20)
    gray = load_image(stored(Image.new("L", (4, 4), 77), "PNG"))
    assert np.asarray(gray)[0, 0].tolist() == [77, 77, 77]


def test_load_image_opens_a_transparent_palette_silently():
    image = Image.new("P", (4, 4), 0)
    image.info["transparency"] = bytes([0] * 256)
    assert load_image(stored(image, "PNG", transparency=bytes([0] * 256))).mode == "RGB"


@pytest.mark.parametrize("turn", range(1, 9))
def test_load_image_applies_the_exif_orientation(turn):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = load_image(stored(Image.fromarray(pixels), "PNG", exif=exif))
    naive = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    np.testing.assert_array_equal(np.asarray(picture), naive[turn])


def test_load_image_returns_the_reason_of_a_failure(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = stored(Image.fromarray(noise), "JPEG")
    assert isinstance(load_image(whole[: len(whole) // 2]), UnreadableImage)
    assert isinstance(load_image(b"no picture"), UnreadableImage)
    assert isinstance(load_image(b""), UnreadableImage)
    assert "does not exist" in load_image(tmp_path / "no.jpg").reason


def test_encode_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(encode_png(pixels))), pixels)


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_load_image_decodes_jpeg_as_pillow_does(mode):
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    content = stored(Image.fromarray(noise).convert(mode), "JPEG")
    np.testing.assert_array_equal(np.asarray(load_image(content)), by_pillow(content))


@pytest.mark.parametrize("turn", [3, 6])
def test_load_image_applies_the_exif_of_a_jpeg(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = load_image(stored(Image.new("RGB", (32, 16), (9, 99, 199)), "JPEG", exif=exif))
    assert picture.size == ((32, 16) if turn == 3 else (16, 32))


def test_load_image_reads_a_cut_jpeg_only_if_pillow_does():
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    whole = stored(Image.fromarray(noise), "JPEG")
    for end in range(0, len(whole), 7):
        try:
            expected = by_pillow(whole[:end])
        except OSError:
            assert isinstance(load_image(whole[:end]), UnreadableImage)
        else:
            np.testing.assert_array_equal(np.asarray(load_image(whole[:end])), expected)
