"""Nearest neighbors in blocks: exact by matrix products, approximate by faiss, and what is read off the graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.errors import UserError
from cleantune.kernels.to_delete.nearest import multiplies_bfloat16, nearest

EXACT = 200_000
"""Samples up to which neighbors are exact."""
BLOCK_BYTES = 96_000_000
"""Of the similarities that are in memory at a time."""
SMALL = 2_000
"""Samples below which products are quick in any format."""
QUERIES = 500
"""Samples on which the recall of approximate neighbors is measured."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class NeighborGraph:
    """The k nearest neighbors of every sample, nearest first; a sample is no neighbor of its own."""

    index: Int[Tensor, "N K"]
    similarity: Float[Tensor, "N K"]
    """Cosine of centered features."""
    recall: float
    """1 where the search is exact, else measured on 500 samples."""


def unit_rows(features: Any, mean: Float[Tensor, " D"], start: int, end: int) -> Float[Tensor, "n D"]:
    """Centered rows of length 1."""
    x = torch.from_numpy(np.array(features[start:end], dtype=np.float32)) - mean
    return torch.nn.functional.normalize(x, dim=1)


def build_neighbor_graph(
    features: Any, mean: Float[Tensor, " D"], k: int = 15, *, approximate: bool | None = None,
    progress: Progress | None = None,
) -> NeighborGraph:  # fmt: skip
    """The k nearest neighbors by the cosine of centered features; never an N x N array.

    Args:
        features: [N, D], an array or memory-mapped.
        mean: Of the features.
        k: Neighbors, fewer where there are fewer samples.
        approximate: By faiss (an inverted file); None: above 200,000 samples.
        progress: Told about samples done.

    Raises:
        UserError: Approximate neighbors are needed and faiss is not installed.
    """
    count = len(features)
    k = min(k, count - 1)
    if approximate if approximate is not None else count > EXACT:
        return _approximate(features, mean, k, progress)
    x = torch.cat([unit_rows(features, mean, s, min(s + 65536, count)) for s in range(0, count, 65536)])
    if count >= SMALL and multiplies_bfloat16():
        return NeighborGraph(*nearest(x, k, progress), 1.0)
    block = -(-count // -(-count // max(1, math.isqrt(BLOCK_BYTES // 8))))
    index = torch.zeros(count, k, dtype=torch.int64)
    similarity = torch.full((count, k), -torch.inf)

    def offer(rows: slice, cosine: Tensor, first: int) -> None:
        value, place = cosine.topk(min(k, cosine.shape[1]), dim=1)
        value, place = torch.cat([similarity[rows], value], 1), torch.cat([index[rows], place + first], 1)
        similarity[rows], best = value.topk(k, dim=1)
        index[rows] = place.gather(1, best)

    starts = range(0, count, block)
    for j, start in enumerate(starts):
        rows = slice(start, start + block)
        for other in starts[j:]:  # each pair of blocks once: a cosine is that of both
            cosine = x[rows] @ x[other : other + block].T
            if other == start:
                cosine.fill_diagonal_(-torch.inf)
            else:
                offer(slice(other, other + block), cosine.T.contiguous(), start)
            offer(rows, cosine, other)
        if progress is not None:
            left = len(starts) - 1 - j
            progress(round(count * (1 - left * (left + 1) / (len(starts) * (len(starts) + 1)))), count)
    return NeighborGraph(index, similarity, 1.0)


def _approximate(features: Any, mean: Tensor, k: int, progress: Progress | None) -> NeighborGraph:
    try:
        import faiss
    except ImportError:
        raise UserError(
            f"neighbors of {len(features):,} samples need faiss: pip install 'cleantune[faiss]', or audit fewer"
            " (--limit)"
        ) from None
    count, width = features.shape
    cells = max(1, int(4 * np.sqrt(count)))
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(count, min(count, 40 * cells), replace=False))
    search = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    search.train(
        torch.nn.functional.normalize(torch.from_numpy(np.array(features[some], dtype=np.float32)) - mean).numpy()
    )
    for start in range(0, count, 65536):
        search.add(unit_rows(features, mean, start, min(start + 65536, count)).numpy())
    search.nprobe = min(cells, 32)
    index, similarity = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    for start in range(0, count, 8192):
        end = min(start + 8192, count)
        index[start:end], similarity[start:end] = _others(
            search, unit_rows(features, mean, start, end).numpy(), start, k
        )
        if progress is not None:
            progress(end, count)
    asked = np.sort(rng.choice(count, min(QUERIES, count), replace=False))
    return NeighborGraph(index, similarity, _recall(features, mean, index, asked, k))


def _others(search: Any, x: np.ndarray, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The neighbors that are not the sample itself."""
    value, found = (torch.from_numpy(a) for a in search.search(x, k + 1))
    own = (found == torch.arange(start, start + len(x))[:, None]) | (found < 0)
    order = own.int().argsort(dim=1, stable=True)[:, :k]
    return found.gather(1, order).clamp(min=0), value.gather(1, order)


def _recall(features: Any, mean: Tensor, index: Tensor, asked: np.ndarray, k: int) -> float:
    """Share of the true neighbors of some samples that were found."""
    rows = torch.from_numpy(asked)
    x = torch.nn.functional.normalize(torch.from_numpy(np.array(features[asked], dtype=np.float32)) - mean)
    best = torch.full((len(rows), k), -torch.inf)
    where = torch.zeros(len(rows), k, dtype=torch.int64)
    for start in range(0, len(features), 16384):
        end = min(start + 16384, len(features))
        cosine = x @ unit_rows(features, mean, start, end).T
        here = rows[:, None] == torch.arange(start, end)
        value = torch.cat([best, cosine.masked_fill(here, -torch.inf)], 1)
        place = torch.cat([where, torch.arange(start, end).expand(len(rows), -1)], 1)
        best, order = value.topk(k, dim=1)
        where = place.gather(1, order)
    return float((where[:, :, None] == index[rows][:, None]).any(2).float().mean())


def neighbor_votes(graph: NeighborGraph, y: Int[Tensor, " N"], classes: int) -> Float[Tensor, "N C"]:
    """Share of each class among the neighbors' given labels, nearer ones weighing more (exp(10 cos))."""
    weight = torch.exp(10 * (graph.similarity - graph.similarity[:, :1]))
    out = torch.zeros(len(y), classes).scatter_add_(1, y[graph.index], weight)
    share: Tensor = out / weight.sum(1, keepdim=True)
    return share


def find_near_duplicates(
    graph: NeighborGraph, closeness: float = 0.98
) -> tuple[Int[Tensor, "M 2"], Float[Tensor, " M"]]:
    """Pairs of neighbors at least this close, the smaller index first, and their cosines."""
    rows = torch.arange(len(graph.index))[:, None].expand_as(graph.index)
    close = graph.similarity >= closeness
    pairs = torch.stack([rows[close], graph.index[close]], 1).sort(dim=1).values
    unique, place = torch.unique(pairs, dim=0, return_inverse=True)
    return unique, torch.zeros(len(unique)).scatter_reduce_(0, place, graph.similarity[close], "amax")


def outlier_scores(graph: NeighborGraph) -> Float[Tensor, " N"]:
    """How alone a sample is: 1 minus the mean cosine to its neighbors, 0..2; higher is more alone."""
    return 1 - graph.similarity.mean(1)
