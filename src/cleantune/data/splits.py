"""Seeded stratified draws, and the names of splits."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}


def canonical_split(value: str) -> str | None:
    """`train`, `validation` or `test` where a value is one of their usual names, else None."""
    word = value.strip().lower()
    return next((split for split, names in _NAMES.items() if word in names), None)


def quotas(
    sizes: Int[np.ndarray, " C"], count: int, low: Int[np.ndarray, " C"], high: Int[np.ndarray, " C"]
) -> Int[np.ndarray, " C"]:
    """How many of each class make `count`, in proportion to the sizes by largest remainder, each within low..high.

    The sum falls short of or exceeds `count` only where the bounds leave no choice.
    """
    exact = sizes * (count / max(int(sizes.sum()), 1))
    quota = np.clip(np.floor(exact).astype(np.int64), low, high)
    while (short := count - int(quota.sum())) != 0:
        step = 1 if short > 0 else -1
        free = quota < high if step > 0 else quota > low
        if not free.any():
            break
        owed = np.where(free, step * (exact - quota), -np.inf)
        quota[np.argsort(-owed, kind="stable")[: min(abs(short), int(free.sum()))]] += step
    return quota


def draw_fraction(y: Int[np.ndarray, " N"], fraction: float, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """Which rows a stratified draw of this share takes; every class leaves at least one row behind."""
    sizes = np.bincount(y)
    count = round(fraction * len(y))
    return _draw(y, quotas(sizes, count, np.zeros_like(sizes), np.maximum(sizes - 1, 0)), rng)


def draw_count(y: Int[np.ndarray, " N"], count: int, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """Which rows a stratified draw of `count` takes; every class gives at least one where `count` allows."""
    sizes = np.bincount(y)
    low = np.minimum(sizes, 1) if count >= np.count_nonzero(sizes) else np.zeros_like(sizes)
    return _draw(y, quotas(sizes, min(count, len(y)), low, sizes), rng)


def _draw(y: np.ndarray, quota: np.ndarray, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    taken = np.zeros(len(y), bool)
    # Shuffle once, then stand the classes side by side: the first of each class are its draw.
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(y, minlength=len(quota)))])[:-1]
    rank = np.arange(len(y)) - starts[y[order]]
    taken[order[rank < quota[y[order]]]] = True
    return taken
