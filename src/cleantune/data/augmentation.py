"""Weak and strong views of images and texts, drawn from the given generator and nothing else.

The global generator is never touched, so views can be made in a thread beside the training step. Geometry is one
warp per image whatever was drawn, so that pixels are interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.config.augmentation import ImageAugmentation
from cleantune.kernels.to_delete.halves import by_halves
from cleantune.methods.protocol import View

_LEVELS = 30
"""RandAugment counts magnitudes from 0 to this."""


def augment_images(
    pixels: Tensor, view: View, settings: ImageAugmentation, generator: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """A view of each image.

    Args:
        pixels: uint8 [B, 3, H, W].
        view: `weak`: mirrored and warped; `strong`: RandAugment too.
        settings: How far.
        generator: The only source of chance; the same state gives the same bits.

    Returns:
        Pixels of 0..255 as float; what is warped in from outside the image is its mirror image.
    """
    count = len(pixels)
    geometry = _weak_geometry(count, settings, generator)
    x = pixels.float()
    if view == "strong":
        x.div_(255)
        level = settings.magnitude / _LEVELS
        for _ in range(settings.num_ops):
            drawn = torch.randint(_OPERATION_COUNT, (count,), generator=generator)
            sign = torch.randint(2, (count,), generator=generator).float() * 2 - 1
            for k, name in enumerate(_COLORS):
                rows = (drawn == k).nonzero().flatten()
                if len(rows):
                    x[rows] = _colored(x[rows], name, sign[rows].to(x.device) * level, level)
            geometry = _drawn_geometry(drawn, sign * level) @ geometry
        x = x.clamp_(0, 1).mul_(255)
    return by_halves(_warp, x, geometry)


# -- geometry: 3 x 3 matrices from a place in the view to its place in the image, in units of half a side --------------


def _weak_geometry(count: int, settings: ImageAugmentation, generator: torch.Generator) -> Tensor:
    chance = torch.rand(5, count, generator=generator)
    angle = (chance[0] * 2 - 1) * math.radians(settings.degrees)
    scale = 1 / (1 + (chance[1] * 2 - 1) * settings.scale)
    mirror = torch.where(chance[4] < settings.flip, -1.0, 1.0)
    matrix = torch.zeros(count, 3, 3)
    matrix[:, 0, 0] = scale * angle.cos() * mirror
    matrix[:, 0, 1] = -scale * angle.sin() * mirror
    matrix[:, 1, 0] = scale * angle.sin()
    matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, :2, 2] = (chance[2:4].T * 2 - 1) * 2 * settings.translate
    matrix[:, 2, 2] = 1
    return matrix


def _drawn_geometry(drawn: Tensor, level: Tensor) -> Tensor:
    """RandAugment's rotation (to 30 degrees), shears (to 0.3) and shifts (to 0.45 of the side); else the identity."""
    matrix = torch.eye(3).repeat(len(drawn), 1, 1)
    first = len(_COLORS)
    angle = torch.where(drawn == first, level * math.radians(30), 0.0)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1] = torch.where(drawn == first + 1, level * 0.3, -angle.sin())
    matrix[:, 1, 0] = torch.where(drawn == first + 2, level * 0.3, angle.sin())
    matrix[:, 0, 2] = torch.where(drawn == first + 3, level * 0.9, 0.0)
    matrix[:, 1, 2] = torch.where(drawn == first + 4, level * 0.9, 0.0)
    return matrix


def _warp(x: Tensor, matrix: Tensor) -> Tensor:
    """The images through their matrices; kornia's warp takes three times as long on small images."""
    grid = _grid(matrix[:, :2].to(x), *x.shape[2:])
    return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _grid(matrix: Float[Tensor, "B 2 3"], height: int, width: int) -> Float[Tensor, "B H W 2"]:
    """Where each pixel of a view lies in its image, in units of half a side of it; each coordinate together in memory.

    The matrices turn and shear in one unit for both sides, whatever their lengths. Torch's affine_grid multiplies them
    with all pixels, in fourteen times the time and more.
    """
    across = (torch.arange(width, device=matrix.device) * 2 + 1) / width - 1
    down = (torch.arange(height, device=matrix.device) * 2 + 1) / height - 1
    turn = matrix[:, :, :2] * matrix.new_tensor([[1.0, height / width], [width / height, 1.0]])
    by_row = torch.addcmul(matrix[:, :, 2, None], turn[:, :, 1, None], down)
    by_column = turn[:, :, 0, None] * across
    return (by_row[..., None] + by_column[:, :, None]).permute(0, 2, 3, 1)


# -- colors: x in 0..1, a signed level of each image, and the magnitude they share ------------------------------------

_COLORS = (
    "identity", "autocontrast", "equalize", "solarize", "posterize", "sharpness", "color", "contrast", "brightness"
)  # fmt: skip
_OPERATION_COUNT = len(_COLORS) + 5
"""The colors, a rotation, two shears and two shifts."""


def _colored(x: Tensor, name: str, level: Tensor, magnitude: float) -> Tensor:
    """One of kornia's operations with our parameters: its own augmentations draw from the global generator."""
    from kornia import enhance

    factor = 1 + 0.9 * level
    num_ops: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: x,
        "autocontrast": lambda: enhance.normalize_min_max(x),
        "equalize": lambda: enhance.equalize(x),
        "solarize": lambda: enhance.solarize(x, 1 - magnitude),
        "posterize": lambda: enhance.posterize(x, 8 - round(4 * magnitude)),
        "sharpness": lambda: enhance.sharpness(x, factor),
        "color": lambda: enhance.adjust_saturation_with_gray_subtraction(x, factor),
        "contrast": lambda: enhance.adjust_contrast_with_mean_subtraction(x, factor),
        "brightness": lambda: enhance.adjust_brightness_accumulative(x, factor),
    }
    return num_ops[name]()


# -- text --------------------------------------------------------------------------------------------------------------


def drop_tokens(
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fixed: Bool[Tensor, "B T"],
    rate: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "B U"], Bool[Tensor, "B U"]]:
    """The texts without a random share of their tokens, closed up.

    Args:
        tokens: Token ids, real ones first.
        mask: True where a token is real.
        fixed: True where a token may not go (special tokens).
        rate: Share that goes, each token by its own draw.
        generator: The only source of chance.

    Returns:
        Tokens and mask, as wide as the longest text left. A text that would lose all its words keeps them all.
    """
    stays = torch.rand(tokens.shape, generator=generator) >= rate
    keep = mask & (fixed | stays)
    words = mask & ~fixed
    emptied = words.any(1) & ~(keep & words).any(1)
    keep[emptied] = mask[emptied]
    order = torch.argsort(~keep, dim=1, stable=True)
    longest = max(1, int(keep.sum(1).max())) if len(keep) else 1
    return tokens.gather(1, order)[:, :longest], keep.gather(1, order)[:, :longest]
