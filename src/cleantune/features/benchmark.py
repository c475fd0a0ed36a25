"""Timings in turns, on machines that others use: who of several is the fastest, and what bfloat16 gains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

import torch

K = TypeVar("K")

_BEHIND = 1.5
"""Who takes so many times as long as the best one, handicaps counted, is timed no further."""
_SECONDS_A_PROBE = 1.0
"""No round of timings begins after this."""

_HOPELESS = 0.3
"""A gain of bfloat16 in small products below which large ones are not tried."""


def race(
    runs: Mapping[K, Callable[[], object]],
    rounds: int = 6,
    handicap: Callable[[K], float] = lambda name: 1.0,
    seconds: float = math.inf,
) -> dict[K, float]:
    """The best seconds of each, in turns: a neighbor that is busy for a while then slows all of them alike.

    The first round warms up. Who is far behind in it and the next leaves the race; it ends when one is left, or with
    the budget of the probe, or with the seconds given where they are fewer.
    """
    best = dict.fromkeys(runs, float("inf"))
    left = list(runs)
    begun = time.perf_counter()
    for turn in range(rounds + 1):
        for name in left:
            start = time.perf_counter()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
        if not turn:
            continue
        first = min(best[name] * handicap(name) for name in left)
        left = [name for name in left if best[name] * handicap(name) < _BEHIND * first]
        if len(left) == 1 or time.perf_counter() - begun > min(seconds, _SECONDS_A_PROBE):
            break
    return best


@cache
def matmul_gain(device: str) -> float:
    """How much faster bfloat16 multiplies than float32: a look of milliseconds that spares a probe of minutes.

    Without native bfloat16 the product is 10 to 400 times slower, and a network in it would not end. With it, the
    gain shows with large matrices alone, so those are timed where small ones do not rule it out.
    """
    gain = _gain(device, 192)
    return gain if gain < _HOPELESS else _gain(device, 768)


def _gain(device: str, rows: int) -> float:
    runs: dict[torch.dtype, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(rows, rows, device=device, dtype=dtype)
        runs[dtype] = lambda a=a: a @ a  # type: ignore[misc]
    seconds = race(runs, rounds=10)
    return seconds[torch.float32] / seconds[torch.bfloat16]
