"""Weak and strong augmentations of images and texts, drawn from a given generator only.

The global random state is neither read nor changed, so that views can be made in a background thread. All geometric
operations on an image are composed into one affine map, so that its pixels are interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.config.augmentation import ImageAugmentation
from cleantune.methods.protocol import View

MAX_MAGNITUDE = 30
"""Largest magnitude of RandAugment."""
COLOR_OPS = (
    "identity", "autocontrast", "equalize", "solarize", "posterize", "sharpness", "color", "contrast", "brightness"
)  # fmt: skip
"""Operations of RandAugment on colors; the last five of `NUM_OPS` are the geometric ones."""
NUM_OPS = len(COLOR_OPS) + 5
"""Operations of RandAugment: those on colors, a rotation, two shears and two translations."""


def augment_images(
    pixels: Tensor, view: View, settings: ImageAugmentation, generator: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """Augment each image.

    The weak view is a random flip and affine map. The strong view applies RandAugment (arXiv:1909.13719) before.

    Args:
        pixels: uint8 [B, 3, H, W].
        view: `weak` or `strong`.
        settings: Strength of the augmentations.
        generator: Only source of randomness; equal states give equal bits.

    Returns:
        Pixels from 0 to 255 as float32; pixels from outside an image are its reflection.
    """
    count = len(pixels)
    geometry = _sample_weak_geometry(count, settings, generator)
    x = pixels.float()
    if view == "strong":
        x.div_(255)
        level = settings.magnitude / MAX_MAGNITUDE
        for _ in range(settings.num_ops):
            ops = torch.randint(NUM_OPS, (count,), generator=generator)
            sign = torch.randint(2, (count,), generator=generator).float() * 2 - 1
            for k, name in enumerate(COLOR_OPS):
                rows = (ops == k).nonzero().flatten()
                if len(rows):
                    x[rows] = apply_color_op(x[rows], name, sign[rows].to(x.device) * level, level)
            geometry = geometric_op_matrices(ops, sign * level) @ geometry
        x = x.clamp_(0, 1).mul_(255)
    return warp(x, geometry)


def warp(x: Float[Tensor, "B 3 H W"], matrices: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 H W"]:
    """Resample images by affine maps with bilinear interpolation and reflection padding.

    Args:
        x: Images.
        matrices: Maps from output to input coordinates, with the origin at the center of the image. A unit is half a
            side; rotations and shears keep angles in images that are not square.
    """
    height, width = x.shape[2:]
    theta = matrices[:, :2].to(x, copy=True)
    theta[:, 0, 1] *= height / width  # affine_grid measures each axis by half its own length
    theta[:, 1, 0] *= width / height
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _sample_weak_geometry(count: int, settings: ImageAugmentation, generator: torch.Generator) -> Tensor:
    """Draw the affine map of each image's weak view, [B, 3, 3]."""
    uniform = torch.rand(5, count, generator=generator)
    angle = (uniform[0] * 2 - 1) * math.radians(settings.degrees)
    scale = 1 / (1 + (uniform[1] * 2 - 1) * settings.scale)
    mirror = torch.where(uniform[4] < settings.flip, -1.0, 1.0)
    matrices = torch.zeros(count, 3, 3)
    matrices[:, 0, 0] = scale * angle.cos() * mirror
    matrices[:, 0, 1] = -scale * angle.sin() * mirror
    matrices[:, 1, 0] = scale * angle.sin()
    matrices[:, 1, 1] = scale * angle.cos()
    matrices[:, :2, 2] = (uniform[2:4].T * 2 - 1) * 2 * settings.translate
    matrices[:, 2, 2] = 1
    return matrices


def geometric_op_matrices(ops: Int[Tensor, " B"], level: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Return the affine maps of RandAugment's geometric operations.

    Args:
        ops: Operation of each image, 0 to `NUM_OPS` - 1; an operation on colors gives the identity.
        level: Signed level of each image; at 1 a rotation by 30 degrees, a shear by 0.3, a translation by 0.45 of the
            side.
    """
    matrices = torch.eye(3).repeat(len(ops), 1, 1)
    first = len(COLOR_OPS)
    angle = torch.where(ops == first, level * math.radians(30), 0.0)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1] = torch.where(ops == first + 1, level * 0.3, -angle.sin())
    matrices[:, 1, 0] = torch.where(ops == first + 2, level * 0.3, angle.sin())
    matrices[:, 0, 2] = torch.where(ops == first + 3, level * 0.9, 0.0)
    matrices[:, 1, 2] = torch.where(ops == first + 4, level * 0.9, 0.0)
    return matrices


def apply_color_op(
    x: Float[Tensor, "B 3 H W"], name: str, level: Float[Tensor, " B"], magnitude: float
) -> Float[Tensor, "B 3 H W"]:
    """Apply one of RandAugment's operations on colors.

    It calls kornia's functions, because kornia's augmentation modules draw from the global generator.

    Args:
        x: Images from 0 to 1.
        name: One of `COLOR_OPS`.
        level: Signed level of each image, -1 to 1.
        magnitude: Level without the sign, which all images share.
    """
    from kornia import enhance

    factor = 1 + 0.9 * level
    ops: dict[str, Callable[[], Tensor]] = {
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
    return ops[name]()


def drop_tokens(
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fixed: Bool[Tensor, "B T"],
    rate: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "B U"], Bool[Tensor, "B U"]]:
    """Remove random tokens from texts and close the gaps.

    Args:
        tokens: Token ids, padded at the end.
        mask: True for tokens that are no padding.
        fixed: True for tokens that must stay (special tokens).
        rate: Probability that a token is removed.
        generator: Only source of randomness.

    Returns:
        Tokens and mask, as wide as the longest remaining text. A text that would lose all its words keeps them all.
    """
    stays = torch.rand(tokens.shape, generator=generator) >= rate
    keep = mask & (fixed | stays)
    words = mask & ~fixed
    emptied = words.any(1) & ~(keep & words).any(1)
    keep[emptied] = mask[emptied]
    order = torch.argsort(~keep, dim=1, stable=True)
    longest = max(1, int(keep.sum(1).max())) if len(keep) else 1
    return tokens.gather(1, order)[:, :longest], keep.gather(1, order)[:, :longest]
