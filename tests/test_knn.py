"""The neighbor graph, against all pairs of samples."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cleantune.errors import UserError
from cleantune.functional import knn
from cleantune.functional.knn import (
    NeighborGraph,
    build_neighbor_graph,
    find_near_duplicates,
    neighbor_votes,
    outlier_scores,
)


def blobs(count: int, classes: int = 3, width: int = 12) -> tuple[np.ndarray, torch.Tensor]:
    """Return features around random centers, and their classes."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    centers = 3 * torch.randn(classes, width, generator=rng)
    return (centers[y] + torch.randn(count, width, generator=rng)).numpy(), y


@pytest.mark.parametrize(("queries", "keys"), [(2048, 16_384), (23, 31), (7, 3)])
def test_neighbors_equal_those_of_all_pairs(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(200)
    mean = torch.from_numpy(x).mean(0)
    unit = normalize(torch.from_numpy(x) - mean, dim=1)
    all_pairs = (unit @ unit.T).fill_diagonal_(-2)
    monkeypatch.setattr(knn, "QUERY_ROWS", queries)
    monkeypatch.setattr(knn, "KEY_ROWS", keys)
    finished: list[tuple[int, int]] = []
    graph = build_neighbor_graph(x, mean, 5, progress=lambda done, of: finished.append((done, of)))
    assert torch.allclose(graph.similarity, all_pairs.topk(5).values, atol=1e-5)
    assert torch.allclose(all_pairs.gather(1, graph.index), graph.similarity, atol=1e-5)
    assert finished[-1] == (200, 200)
    assert graph.recall == 1.0


def test_all_others_are_neighbors_of_few_samples() -> None:
    x, _ = blobs(4)
    graph = build_neighbor_graph(x, torch.from_numpy(x).mean(0), 15)
    assert [sorted(row) for row in graph.index.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_approximate_neighbors_state_their_recall() -> None:
    pytest.importorskip("faiss")
    x, _ = blobs(3000)
    mean = torch.from_numpy(x).mean(0)
    exact, near = (build_neighbor_graph(x, mean, 10, approximate=a) for a in (False, True))
    share = (exact.index[:, :, None] == near.index[:, None]).any(2).float().mean()
    assert near.recall == pytest.approx(float(share), abs=0.05)
    assert near.recall > 0.5


def test_missing_faiss_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install"):
        build_neighbor_graph(np.zeros((20, 2), "f4"), torch.zeros(2), 3, approximate=True)


def test_votes_are_shares_of_the_neighbors_labels() -> None:
    graph = NeighborGraph(
        torch.tensor([[1, 2], [2, 0], [0, 1]]), torch.tensor([[0.9, 0.8], [0.9, 0.9], [0.5, 0.1]]), 1.0
    )
    share = neighbor_votes(graph, torch.tensor([0, 1, 1]), 3)
    near, far = 1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(4.0))
    torch.testing.assert_close(
        share, torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [near, far, 0.0]], dtype=torch.float32)
    )


def test_near_duplicates_are_listed_once() -> None:
    x, _ = blobs(90)
    x[1] = x[0]
    graph = build_neighbor_graph(x, torch.from_numpy(x).mean(0), 5)
    pairs, cosine = find_near_duplicates(graph, 0.99999)
    assert pairs.tolist() == [[0, 1]]
    assert (cosine >= 0.99999).all()


def test_outlier_score_is_one_minus_the_mean_similarity() -> None:
    graph = NeighborGraph(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[0.9, 0.7], [0.1, -0.1]]), 1.0)
    assert outlier_scores(graph).tolist() == pytest.approx([0.2, 1.0])
