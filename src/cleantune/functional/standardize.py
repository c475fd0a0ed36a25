"""Mean and standard deviation of features, in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STD_FLOOR = 1e-6
"""A dimension whose deviation is below this share of the largest one is constant: it is centered and left at 1."""

_BLOCK = 8192

_ROWS = 512
"""Rows whose sums are taken in float32 before they are added up in float64."""


def mean_and_std(features: Any) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of every dimension, summed in float64 in blocks of rows, in one pass.

    Args:
        features: [N, D], a tensor, an array or memory-mapped features; N at least 1.

    Returns:
        Both as float32. A dimension that does not vary has the deviation 1.
    """
    count, width = features.shape
    shift, total, squares = None, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for block in _blocks(features, count):
        # Distances from a mean of some rows: their sums over a few rows lose nothing in float32.
        shift = block[:_ROWS].double().mean(0).float() if shift is None else shift
        for rows in block.split(_ROWS):
            x = rows - shift
            total += x.sum(0)
            squares += x.square_().sum(0)
    assert shift is not None
    step = total / count
    std = (squares / count - step.square()).clamp(min=0).sqrt()
    mean = shift.double() + step
    floor = max(float(std.max()) * STD_FLOOR, torch.finfo(torch.float32).tiny)
    return mean.float(), torch.where(std > floor, std, torch.ones_like(std)).float()


def _blocks(features: Any, count: int) -> Any:
    for start in range(0, count, _BLOCK):
        yield to_float32(features[start : start + _BLOCK])


def to_float32(block: Any) -> Float[Tensor, ...]:
    """A block of numbers as float32, a copy where it has to be: of memory maps, and of other types."""
    # Torch has no tensors that must not be written to.
    return block.float() if isinstance(block, Tensor) else torch.from_numpy(np.require(block, np.float32, "W"))
