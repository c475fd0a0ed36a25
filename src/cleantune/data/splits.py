"""Stratified random draws and names of splits."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}


def canonical_split(value: str) -> str | None:
    """Return `train`, `validation` or `test` for one of their usual names, else None."""
    word = value.strip().lower()
    return next((split for split, names in _NAMES.items() if word in names), None)


def quotas(
    sizes: Int[np.ndarray, " C"], count: int, low: Int[np.ndarray, " C"], high: Int[np.ndarray, " C"]
) -> Int[np.ndarray, " C"]:
    """Divide a number of samples among classes, in proportion to their sizes by the largest-remainder method.

    Args:
        sizes: Number of samples of each class.
        count: Number of samples to divide.
        low: Minimum of each class.
        high: Maximum of each class.

    Returns:
        Number of samples of each class; the sum differs from `count` only if the bounds enforce it.
    """
    exact = sizes * (count / max(int(sizes.sum()), 1))
    quota = np.clip(np.floor(exact).astype(np.int64), low, high)
    while (short := count - int(quota.sum())) != 0:
        step = 1 if short > 0 else -1
        free = quota < high if step > 0 else quota > low
        if not free.any():
            break
        remainder = np.where(free, step * (exact - quota), -np.inf)
        quota[np.argsort(-remainder, kind="stable")[: min(abs(short), int(free.sum()))]] += step
    return quota


def draw_fraction(y: Int[np.ndarray, " N"], fraction: float, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """Draw a fraction of the rows, stratified by class, as a mask; at least one row of each class is not drawn."""
    sizes = np.bincount(y)
    count = round(fraction * len(y))
    return _draw(y, quotas(sizes, count, np.zeros_like(sizes), np.maximum(sizes - 1, 0)), rng)


def draw_count(y: Int[np.ndarray, " N"], count: int, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """Draw `count` rows, stratified by class, as a mask; at least one of each class if `count` allows it."""
    sizes = np.bincount(y)
    low = np.minimum(sizes, 1) if count >= np.count_nonzero(sizes) else np.zeros_like(sizes)
    return _draw(y, quotas(sizes, min(count, len(y)), low, sizes), rng)


def _draw(y: np.ndarray, quota: np.ndarray, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """Draw `quota[c]` rows of each class c."""
    drawn = np.zeros(len(y), bool)
    # Shuffle, then sort by class: the first rows of each class are drawn.
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(y, minlength=len(quota)))])[:-1]
    rank = np.arange(len(y)) - starts[y[order]]
    drawn[order[rank < quota[y[order]]]] = True
    return drawn
