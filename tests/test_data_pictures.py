"""Pictures of every mode become RGB with the colours they show."""

import io

import numpy as np
import pytest
from PIL import Image

from cleantune.data.pictures import encode_png, open_picture
from cleantune.data.rows import Bad


def stored(image: Image.Image, form: str, **options) -> memoryview:
    file = io.BytesIO()
    image.save(file, form, **options)
    return memoryview(file.getvalue())


def gradient(top: int) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = gradient(65535).astype(np.uint16)
    picture = open_picture(stored(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(np.asarray(picture)[..., 0], np.rint(deep * (255 / 65535)))
    assert picture.mode == "RGB"


@pytest.mark.parametrize("values", [gradient(65535).astype(np.int32), gradient(1).astype(np.float32)])
def test_deeper_numbers_are_scaled_too(values):
    picture = open_picture(stored(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(np.asarray(picture)[..., 1], np.rint(values * (255 / values.max())))


def test_grayscale_palette_and_cmyk_show_their_colour():
    red = Image.new("RGB", (4, 4), (250, 10, 20))
    for image, form in ((red.convert("P"), "PNG"), (red.convert("CMYK"), "TIFF"), (red.convert("RGBA"), "PNG")):
        picture = open_picture(stored(image, form))
        assert picture.mode == "RGB"
        np.testing.assert_allclose(np.asarray(picture)[0, 0], (250, 10, 20), atol=20)
    gray = open_picture(stored(Image.new("L", (4, 4), 77), "PNG"))
    assert np.asarray(gray)[0, 0].tolist() == [77, 77, 77]


def test_a_transparent_palette_opens_without_a_warning():
    image = Image.new("P", (4, 4), 0)
    image.info["transparency"] = bytes([0] * 256)
    assert open_picture(stored(image, "PNG", transparency=bytes([0] * 256))).mode == "RGB"


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_picture_the_right_way_up(turn):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = open_picture(stored(Image.fromarray(pixels), "PNG", exif=exif))
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


def test_damaged_files_give_a_reason_in_their_place(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = stored(Image.fromarray(noise), "JPEG")
    assert isinstance(open_picture(whole[: len(whole) // 2]), Bad)
    assert isinstance(open_picture(memoryview(b"no picture")), Bad)
    assert isinstance(open_picture(memoryview(b"")), Bad)
    assert "does not exist" in open_picture(tmp_path / "no.jpg").reason


def test_png_of_memory_gives_every_pixel_back():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(open_picture(memoryview(encode_png(pixels)))), pixels)
