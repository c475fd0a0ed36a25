"""Instance-dependent noise: what a label turns into depends on what the sample looks like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from cleantune.errors import UserError
from cleantune.noise.model import Noise


def instance(
    y: np.ndarray, x: np.ndarray, classes: int, noise: Noise, rng: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """Labels after instance-dependent noise: each sample's own rate, and targets by its projection.

    Args:
        y: Labels before, 0..C-1.
        x: Flattened samples.
        classes: C.
        noise: Rate, generator and scale of pixels.
        rng: What draws.

    Raises:
        UserError: Where samples and labels differ in number.

    Source: CORES (arXiv:2010.02347) with one projection, PDN (arXiv:2006.07836) with one a class.
    """
    if len(x) != len(y):
        raise UserError(f"instance noise: {len(x)} samples for {len(y)} labels")
    q = truncated_normal(noise.rate, 0.1, len(y), rng)
    x = x.reshape(len(x), -1)
    scaled = _scale(x, noise.pixels)
    everyone = [np.arange(len(y))]
    blocks = everyone if noise.generator == "cores" else [np.flatnonzero(y == c) for c in range(classes)]
    drawn = y.copy()
    for block in blocks:
        projection = rng.standard_normal((x.shape[1], classes))
        for start in range(0, len(block), 4096):  # bounds the memory of float64 samples
            rows = block[start : start + 4096]
            a = scaled(rows) @ projection
            drawn[rows] = draw_from(_flip_probability(a, y[rows], q[rows]), rng)
    return drawn


def _flip_probability(a: np.ndarray, y: np.ndarray, q: np.ndarray) -> Float[np.ndarray, "B C"]:
    own = np.arange(len(y)), y
    a[own] = -np.inf  # raw pixels give scores of thousands, so no finite stand-in is safe
    p: np.ndarray = np.exp(a - a.max(1, keepdims=True))
    p *= (q / p.sum(1))[:, None]
    p[own] = 1 - q
    return p


def _scale(x: np.ndarray, pixels: str) -> Callable[[np.ndarray], np.ndarray]:
    if pixels == "raw":
        return lambda rows: x[rows].astype(np.float64)
    if pixels == "unit":
        return lambda rows: x[rows].astype(np.float64) / 255
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    std[std == 0] = 1
    return lambda rows: (x[rows] - mean) / std


def truncated_normal(mean: float, std: float, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """`n` draws of Normal(mean, std²) kept inside (0, 1) by rejection."""
    drawn = rng.normal(mean, std, n)
    while (outside := (drawn <= 0) | (drawn >= 1)).any():
        drawn[outside] = rng.normal(mean, std, int(outside.sum()))
    return drawn


def draw_from(p: Float[np.ndarray, "N C"], rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """One label a row, drawn from that row's probabilities."""
    below = np.cumsum(p, axis=1)
    u = rng.random(len(p)) * below[:, -1]  # float error: the sum is not exactly 1
    drawn: np.ndarray = (below <= u[:, None]).sum(1)
    return drawn
