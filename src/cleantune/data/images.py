"""A picture as RGB, 8 bits a channel, the right way up, whatever its file holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cleantune.data.dataset import UnreadableImage

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".avif", ".tga",
))
"""File names that an image folder takes for pictures."""
# fmt: on
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_SCAN = 0xDA
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xFE))
"""Huffman tables, quantization, restarts, JFIF, a comment."""
_LARGE = 1 << 24
"""Pixels beyond which Pillow may have a warning to give."""


def load_image(source: Path | memoryview) -> Image.Image | UnreadableImage:
    """The picture of a file or of its bytes: mode RGB, turned as its EXIF says; `UnreadableImage` where it cannot be read."""
    quick = None if isinstance(source, Path) else _plain_jpeg(source)
    if quick is not None:
        return quick
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            image.load()
            # EXIF is looked for first: the transposition copies the picture even where there is nothing to turn.
            return to_rgb(ImageOps.exif_transpose(image) if image.getexif() else image)
    except FileNotFoundError:
        return UnreadableImage("the file does not exist")
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything; the reason is kept and counted
        return UnreadableImage(f"{str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _plain_jpeg(source: memoryview) -> Image.Image | None:
    """The picture of a JPEG in color whose header holds nothing else, None for every other file.

    Pillow's decoder makes it of the bytes as it would in `Image.open`, whose look at every table in the header takes as
    long as a small picture itself. Profiles, EXIF, other kinds of JPEG and damaged ones are left to `Image.open`.
    """
    source = source.cast("B")  # Arrow says that its bytes have a sign
    size = _jpeg_size(source)
    if size is None:
        return None
    try:
        return Image.frombytes("RGB", size, source, "jpeg", "RGB", "")
    except (ValueError, OSError):
        return None


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """Width and height that a plain header states."""
    if bytes(data[:3]) != b"\xff\xd8\xff":
        return None
    place, size, end = 2, None, len(data) - 9
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _SCAN:
            return size
        if marker in _FRAMES:
            bits, layers = data[place + 4], data[place + 9]
            size = (data[place + 7] << 8 | data[place + 8], data[place + 5] << 8 | data[place + 6])
            if bits != 8 or layers != 3 or not 0 < size[0] * size[1] < _LARGE:
                return None
        elif marker not in _TABLES:
            return None
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB; 16 bits and more are scaled to 8, never clipped, and transparency is dropped.

    Integers are read as 0..65535 (or 0..their maximum where that is larger), floats as 0..1 (or 0..their maximum).
    """
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    full = max(1.0 if np.issubdtype(pixels.dtype, np.floating) else 65535.0, float(values.max(initial=0)))
    scaled: np.ndarray = np.rint(values.clip(0) * (255 / full)).astype(np.uint8)
    return scaled


def encode_png(picture: Image.Image | np.ndarray) -> bytes:
    """A picture in memory as the bytes of a file without loss, so that all images are read one way."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    (image if image.mode != "CMYK" else image.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()
