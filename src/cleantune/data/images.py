"""Image decoding: every file becomes an upright RGB image with 8 bits per channel."""

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
"""File name extensions of images."""
# fmt: on


def load_image(source: Path | bytes) -> Image.Image | UnreadableImage:
    """Decode an image file or its content to RGB, in the orientation that its EXIF data state.

    Returns:
        The image, or `UnreadableImage` with the reason.
    """
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            image.load()
            # exif_transpose copies the image even if there is nothing to do.
            return to_rgb(ImageOps.exif_transpose(image) if image.getexif() else image)
    except FileNotFoundError:
        return UnreadableImage("the file does not exist")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly any type for damaged files; the reason is recorded and counted
        return UnreadableImage(str(error).splitlines()[0] if str(error) else type(error).__name__)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB; 16 bits and more are scaled to 8, never clipped, and transparency is dropped.

    Integers are read as 0..65535 (or 0..their maximum if that is larger), floats as 0..1 (or 0..their maximum).
    """
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scale_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scale_to_uint8(pixels: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    top = max(1.0 if np.issubdtype(pixels.dtype, np.floating) else 65535.0, float(values.max(initial=0)))
    scaled: np.ndarray = np.rint(values.clip(0) * (255 / top)).astype(np.uint8)
    return scaled


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """Encode an image in memory without loss, so that all images are read in one way."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    (image if image.mode != "CMYK" else image.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()
