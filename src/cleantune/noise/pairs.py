"""Noise in pairs, such as images and captions: a share of the captions changes places.

Source: arXiv:2309.17002, section 2.1: pairs of captions are swapped until a share is mismatched; nmtune spec 1.2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def swap(count: int, rate: float, seed: int) -> Int[np.ndarray, " N"]:
    """For each pair the pair whose caption it gets.

    round(rate N) pairs are drawn; inside them two and two change places, three in a ring where their number is odd. So
    none of them keeps its own. A single drawn pair has nobody to change with and stays.

    Args:
        count: N.
        rate: Share of the pairs that are mismatched, 0..1.
        seed: Same seed, same places.
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
