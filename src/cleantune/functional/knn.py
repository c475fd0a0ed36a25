"""k-nearest-neighbor graph by cosine similarity (exact in blocks, or approximate with faiss) and its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.errors import UserError

MAX_EXACT_SAMPLES = 200_000
"""Largest number of samples whose neighbors are searched exactly by default."""
QUERY_ROWS = 2048
"""Rows of a block of queries."""
KEY_ROWS = 16_384
"""Rows of a block of keys; a block of similarities takes `QUERY_ROWS * KEY_ROWS * 4` bytes, 128 MiB."""
READ_ROWS = 65_536
"""Rows of features that are read at a time."""
RECALL_QUERIES = 500
"""Samples on which the recall of approximate neighbors is measured."""

Progress = Callable[[int, int], None]
"""Called with the numbers of finished samples and of all samples."""


@dataclass(frozen=True)
class NeighborGraph:
    """The k nearest neighbors of every sample, nearest first; a sample is not its own neighbor."""

    index: Int[Tensor, "N K"]
    similarity: Float[Tensor, "N K"]
    """Cosine similarity of centered features."""
    recall: float
    """Fraction of the true neighbors that were found: 1 if the search is exact, else measured on 500 samples."""


def build_neighbor_graph(
    features: Any, mean: Float[Tensor, " D"], k: int = 15, *, approximate: bool | None = None,
    progress: Progress | None = None,
) -> NeighborGraph:  # fmt: skip
    """Find the k nearest neighbors of every sample by the cosine similarity of centered features.

    The N x N matrix of similarities is never in memory.

    Args:
        features: Features [N, D], an array or memory-mapped.
        mean: Mean of the features [D].
        k: Number of neighbors; N - 1 if there are fewer samples.
        approximate: True for faiss (an inverted file), False for exact search, None for faiss above 200,000 samples.
        progress: Callback for finished samples.

    Returns:
        The graph, nearest neighbors first.

    Raises:
        UserError: Approximate search is needed and faiss is not installed.
    """
    count = len(features)
    k = min(k, count - 1)
    if approximate if approximate is not None else count > MAX_EXACT_SAMPLES:
        return _approximate(features, mean, k, progress)
    keys = torch.cat([_unit_rows(features, mean, s, min(s + READ_ROWS, count)) for s in range(0, count, READ_ROWS)])
    index, similarity = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    for start in range(0, count, QUERY_ROWS):
        end = min(start + QUERY_ROWS, count)
        index[start:end], similarity[start:end] = _nearest(keys, torch.arange(start, end), k)
        if progress is not None:
            progress(end, count)
    return NeighborGraph(index, similarity, 1.0)


def _unit_rows(features: Any, mean: Float[Tensor, " D"], start: int, end: int) -> Float[Tensor, "n D"]:
    """Return centered rows of length 1."""
    x = torch.from_numpy(np.array(features[start:end], dtype=np.float32)) - mean
    return torch.nn.functional.normalize(x, dim=1)


def _nearest(
    keys: Float[Tensor, "N D"], queries: Int[Tensor, " Q"], k: int
) -> tuple[Int[Tensor, "Q K"], Float[Tensor, "Q K"]]:
    """Return index and cosine similarity of the k nearest other rows of some rows, nearest first."""
    x = keys[queries]
    index, similarity = torch.zeros(len(x), k, dtype=torch.int64), torch.full((len(x), k), -torch.inf)
    for start in range(0, len(keys), KEY_ROWS):
        cosine = x @ keys[start : start + KEY_ROWS].T
        inside = (queries >= start) & (queries < start + KEY_ROWS)
        cosine[inside, queries[inside] - start] = -torch.inf
        value, place = cosine.topk(min(k, cosine.shape[1]), dim=1)
        value, place = torch.cat([similarity, value], 1), torch.cat([index, place + start], 1)
        similarity, best = value.topk(k, dim=1)
        index = place.gather(1, best)
    return index, similarity


def _approximate(features: Any, mean: Tensor, k: int, progress: Progress | None) -> NeighborGraph:
    """Search with an inverted file of faiss and measure the recall."""
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
    sample = np.sort(rng.choice(count, min(count, 40 * cells), replace=False))
    search = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    search.train(
        torch.nn.functional.normalize(torch.from_numpy(np.array(features[sample], dtype=np.float32)) - mean).numpy()
    )
    for start in range(0, count, READ_ROWS):
        search.add(_unit_rows(features, mean, start, min(start + READ_ROWS, count)).numpy())
    search.nprobe = min(cells, 32)
    index, similarity = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    for start in range(0, count, 8192):
        end = min(start + 8192, count)
        queries = _unit_rows(features, mean, start, end).numpy()
        index[start:end], similarity[start:end] = _search_others(search, queries, start, k)
        if progress is not None:
            progress(end, count)
    queries = np.sort(rng.choice(count, min(RECALL_QUERIES, count), replace=False))
    return NeighborGraph(index, similarity, _recall(features, mean, index, queries, k))


def _search_others(search: Any, x: np.ndarray, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the neighbors that faiss finds, without the sample itself."""
    value, index = (torch.from_numpy(a) for a in search.search(x, k + 1))
    is_itself = (index == torch.arange(start, start + len(x))[:, None]) | (index < 0)
    order = is_itself.int().argsort(dim=1, stable=True)[:, :k]
    return index.gather(1, order).clamp(min=0), value.gather(1, order)


def _recall(features: Any, mean: Tensor, index: Tensor, queries: np.ndarray, k: int) -> float:
    """Measure the fraction of the true neighbors of some samples that are in the graph."""
    rows = torch.from_numpy(queries)
    x = torch.nn.functional.normalize(torch.from_numpy(np.array(features[queries], dtype=np.float32)) - mean)
    best = torch.full((len(rows), k), -torch.inf)
    true_index = torch.zeros(len(rows), k, dtype=torch.int64)
    for start in range(0, len(features), KEY_ROWS):
        end = min(start + KEY_ROWS, len(features))
        cosine = x @ _unit_rows(features, mean, start, end).T
        is_itself = rows[:, None] == torch.arange(start, end)
        value = torch.cat([best, cosine.masked_fill(is_itself, -torch.inf)], 1)
        place = torch.cat([true_index, torch.arange(start, end).expand(len(rows), -1)], 1)
        best, order = value.topk(k, dim=1)
        true_index = place.gather(1, order)
    return float((true_index[:, :, None] == index[rows][:, None]).any(2).float().mean())


def neighbor_votes(graph: NeighborGraph, y: Int[Tensor, " N"], classes: int) -> Float[Tensor, "N C"]:
    """Return the share of each class among the neighbors' given labels, weighted by exp(10 cosine)."""
    weight = torch.exp(10 * (graph.similarity - graph.similarity[:, :1]))
    out = torch.zeros(len(y), classes).scatter_add_(1, y[graph.index], weight)
    share: Tensor = out / weight.sum(1, keepdim=True)
    return share


def find_near_duplicates(
    graph: NeighborGraph, threshold: float = 0.98
) -> tuple[Int[Tensor, "M 2"], Float[Tensor, " M"]]:
    """Return the pairs of neighbors whose cosine similarity reaches a threshold.

    Args:
        graph: Neighbor graph.
        threshold: Smallest cosine similarity of a pair.

    Returns:
        Pairs of indices, the smaller one first, and their cosine similarities.
    """
    rows = torch.arange(len(graph.index))[:, None].expand_as(graph.index)
    close = graph.similarity >= threshold
    pairs = torch.stack([rows[close], graph.index[close]], 1).sort(dim=1).values
    unique, place = torch.unique(pairs, dim=0, return_inverse=True)
    return unique, torch.zeros(len(unique)).scatter_reduce_(0, place, graph.similarity[close], "amax")


def outlier_scores(graph: NeighborGraph) -> Float[Tensor, " N"]:
    """Return the outlier score of every sample, 0..2: 1 minus the mean cosine similarity to its neighbors."""
    return 1 - graph.similarity.mean(1)
