"""A picture as RGB, 8 bits a channel, the right way up, whatever its file holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cleantune.data.rows import Bad

# fmt: off
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".avif", ".tga",
))
"""File names that an image folder takes for pictures."""
# fmt: on


def open_picture(source: Path | memoryview) -> Image.Image | Bad:
    """The picture of a file or of its bytes: mode RGB, turned as its EXIF says; `Bad` where it cannot be read."""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            image.load()
            # EXIF is looked for first: the transposition copies the picture even where there is nothing to turn.
            return as_rgb(ImageOps.exif_transpose(image) if image.getexif() else image)
    except FileNotFoundError:
        return Bad("the file does not exist")
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything; the reason is kept and counted
        return Bad(f"{str(error).splitlines()[0] if str(error) else type(error).__name__}")


def as_rgb(image: Image.Image) -> Image.Image:
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
