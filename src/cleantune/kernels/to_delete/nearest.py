"""The k nearest of many unit vectors by products in bfloat16, made exact: for processors that have them.

Candidates come from the rounded cosines: as integers of 16 bits, with the place below them in 32, they are
selected several times as fast as pairs of numbers. Cosines of candidates are then computed in float32, which also
measures how far the rounded ones are off. A row whose last candidate comes too near to its k-th neighbor for twice
that is searched again in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.features.benchmark import matmul_gain

CELLS = 24_000_000
"""Rounded cosines that are in memory at a time."""
ROWS, COLUMNS = 2048, 65_536
"""Of a block, at the most; a place has 16 bits."""
GROUP = 8
"""Columns of which the largest is looked at first: the k best lie in the k groups of the best."""
SPARE = 9
"""Candidates beyond k."""
GAIN = 1.5
"""How much faster bfloat16 must multiply: the candidates cost time too."""
NOTHING = -32768
"""Below every cosine in the order of integers, in which negative cosines have no order of their own."""


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 clearly faster than float32."""
    return matmul_gain("cpu") >= GAIN


def nearest(
    x: Float[Tensor, "N D"], k: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Index and cosine of the k nearest others of every row, nearest first.

    Args:
        x: Rows of length 1.
        k: Less than N.
        progress: Told about rows done.
    """
    count, most = len(x), min(k + SPARE, len(x) - 1)
    rounded = functional.pad(x.bfloat16(), (0, 0, 0, -count % GROUP))
    width = min(len(rounded), COLUMNS)
    step = max(1, min(ROWS, CELLS // width))
    index, cosine = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    room = torch.empty(step * width, dtype=torch.bfloat16)
    for start in range(0, count, step):
        end = min(start + step, count)
        places, values = [], []
        for first in range(0, len(rounded), width):
            part = rounded[first : first + width]
            block = room[: (end - start) * len(part)].view(end - start, len(part))
            torch.mm(rounded[start:end], part.T, out=block)
            whole = block.view(torch.int16)
            if -len(whole) < start - first < len(part):
                whole.diagonal(start - first).fill_(NOTHING)  # itself
            whole[:, max(count - first, 0) :] = NOTHING
            place, value = _best(whole, min(most, len(part)))
            places.append(place + first)
            values.append(value)
        place, value = torch.cat(places, 1), torch.cat(values, 1)
        if len(places) > 1:
            order = value.topk(most, dim=1).indices.sort(dim=1).values
            place, value = place.gather(1, order), value.gather(1, order)
        index[start:end], cosine[start:end] = _exact(x, start, place, value, k)
        if progress is not None:
            progress(end, count)
    return index, cosine


def _best(block: Int[Tensor, "n m"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Places and values of the k largest of each row of cosines in bfloat16, as integers; in order of place."""
    groups = block.shape[1] // GROUP
    if groups > k:
        largest = block.view(len(block), GROUP, groups).amax(1)
        chosen = _largest(largest, torch.arange(groups), k)
        columns = ((chosen & 0xFFFF)[:, :, None] + groups * torch.arange(GROUP)).flatten(1)
        keys = _largest(block.gather(1, columns), columns, k)
    else:
        keys = _largest(block, torch.arange(block.shape[1]), k)
    turned = np.sort((((keys & 0xFFFF) << 16) | (keys >> 16 & 0xFFFF)).numpy(), axis=1)  # in order of place
    value = torch.from_numpy(turned.astype(np.uint16).view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(turned >> 16), value


def _largest(values: Tensor, places: Tensor, k: int) -> Tensor:
    """Keys of the k largest, value above place, in no order."""
    keys = ((values.int() << 16) | places.int()).numpy()
    return torch.from_numpy(np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]).long()


def _exact(x: Tensor, start: int, place: Tensor, value: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest among the candidates where these hold them for sure, else among all."""
    rows, most = place.shape
    edges = torch.arange(0, rows * most + 1, most)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # torch calls them a beta
        asked = torch.sparse_csr_tensor(
            edges, place.flatten(), torch.zeros(rows * most), (rows, len(x)), check_invariants=False
        )
        exact = torch.sparse.sampled_addmm(asked, x[start : start + rows], x.T, beta=0.0).values().view(rows, most)
    cosine, order = exact.topk(k, dim=1)
    index = place.gather(1, order)
    if most < len(x) - 1:
        least = value.min(1).values
        error = 2 * (exact - value).abs().max()
        unsure = ((least < 0) | (least + error > cosine[:, -1])).nonzero().flatten()
        for some in unsure.split(max(1, CELLS // (2 * len(x)))):
            every = x[start + some] @ x.T
            every[torch.arange(len(some)), start + some] = -torch.inf
            cosine[some], index[some] = every.topk(k, dim=1)
    return index, cosine
