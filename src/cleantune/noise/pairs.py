"""Noise in pairs, such as images and captions: a fraction of the captions is swapped.

Source: arXiv:2309.17002, section 2.1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def swap_pairs(count: int, rate: float, seed: int) -> Int[np.ndarray, " N"]:
    """Draw round(rate N) pairs and swap their captions two by two, three in a ring if their number is odd.

    None of the drawn pairs keeps its caption, unless only one pair was drawn.

    Args:
        count: Number of pairs N.
        rate: Fraction of mismatched pairs, 0..1.
        seed: Seed of the draw.

    Returns:
        For each pair the index of the pair whose caption it gets.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(count)[: round(rate * count)]
    to = np.arange(count)
    if len(drawn) < 2:
        return to
    ring = 3 if len(drawn) % 2 else 0
    if ring:
        to[drawn[:3]] = np.roll(drawn[:3], 1)
    a, b = drawn[ring::2], drawn[ring + 1 :: 2]
    to[a], to[b] = b, a
    return to
