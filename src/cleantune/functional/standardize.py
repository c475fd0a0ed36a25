"""Mean and standard deviation of features, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STD_FLOOR = 1e-6
"""Fraction of the largest standard deviation below which a dimension is constant; its deviation is set to 1."""
BLOCK_ROWS = 8192
"""Rows that are read at a time."""
SUM_ROWS = 512
"""Rows that are summed in float32 before their sums are added in float64."""


def mean_and_std(features: Any) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Compute mean and standard deviation of every dimension in one pass over blocks of rows.

    Args:
        features: Features [N, D], a tensor, an array or memory-mapped; N is at least 1.

    Returns:
        Mean and standard deviation as float32; constant dimensions have the deviation 1.
    """
    count, width = features.shape
    shift, total, squares = None, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for block in _read_blocks(features, count):
        # Sums of distances from the mean of some rows lose nothing in float32 over a few rows.
        shift = block[:SUM_ROWS].double().mean(0).float() if shift is None else shift
        for rows in torch.split(block, SUM_ROWS):
            x = rows - shift
            total += x.sum(0)
            squares += x.square_().sum(0)
    assert shift is not None
    step = total / count
    std = (squares / count - step.square()).clamp(min=0).sqrt()
    mean = shift.double() + step
    floor = max(float(std.max()) * STD_FLOOR, torch.finfo(torch.float32).tiny)
    return mean.float(), torch.where(std > floor, std, torch.ones_like(std)).float()


def _read_blocks(features: Any, count: int) -> Iterator[Float[Tensor, "n D"]]:
    """Yield the rows in blocks of float32."""
    for start in range(0, count, BLOCK_ROWS):
        yield to_float32(features[start : start + BLOCK_ROWS])


def to_float32(block: Any) -> Float[Tensor, ...]:
    """Convert an array or tensor to a float32 tensor; read-only arrays and other types are copied."""
    return block.float() if isinstance(block, Tensor) else torch.from_numpy(np.require(block, np.float32, "W"))
