"""Instance-dependent noise: flip probability and target of a label depend on the input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from cleantune.errors import UserError
from cleantune.noise.model import Noise


def instance_noise(
    y: np.ndarray, x: np.ndarray, classes: int, noise: Noise, rng: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """Flip labels with a rate per sample and targets by a random projection of the sample.

    Args:
        y: Labels, 0..C-1.
        x: Flattened samples [N, L].
        classes: Number of classes C.
        noise: Rate, generator and scale of pixels.
        rng: Random generator.

    Returns:
        Noisy labels.

    Raises:
        UserError: Samples and labels differ in number.

    Source: CORES (arXiv:2010.02347) with one projection, PDN (arXiv:2006.07836) with one per class.
    """
    if len(x) != len(y):
        raise UserError(f"instance noise: {len(x)} samples for {len(y)} labels")
    q = truncated_normal(noise.rate, 0.1, len(y), rng)
    x = x.reshape(len(x), -1)
    scaled = _scale(x, noise.pixels)
    blocks = [np.arange(len(y))] if noise.generator == "cores" else [np.flatnonzero(y == c) for c in range(classes)]
    drawn = y.copy()
    for block in blocks:
        projection = rng.standard_normal((x.shape[1], classes))
        for start in range(0, len(block), 4096):  # bounds the memory of float64 samples
            rows = block[start : start + 4096]
            a = scaled(rows) @ projection
            drawn[rows] = draw_from(_flip_probability(a, y[rows], q[rows]), rng)
    return drawn


def _flip_probability(a: np.ndarray, y: np.ndarray, q: np.ndarray) -> Float[np.ndarray, "B C"]:
    at_label = np.arange(len(y)), y
    a[at_label] = -np.inf  # raw pixels give scores of thousands, so no finite value is safe
    p: np.ndarray = np.exp(a - a.max(1, keepdims=True))
    p *= (q / p.sum(1))[:, None]
    p[at_label] = 1 - q
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
    """Draw `n` values from Normal(mean, std²) truncated to (0, 1) by rejection."""
    drawn = rng.normal(mean, std, n)
    while (outside := (drawn <= 0) | (drawn >= 1)).any():
        drawn[outside] = rng.normal(mean, std, int(outside.sum()))
    return drawn


def draw_from(p: Float[np.ndarray, "N C"], rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Draw one label per row from the probabilities of that row."""
    below = np.cumsum(p, axis=1)
    u = rng.random(len(p)) * below[:, -1]  # float error: the sum is not exactly 1
    drawn: np.ndarray = (below <= u[:, None]).sum(1)
    return drawn
