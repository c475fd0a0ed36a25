"""Neighbors found by rounded products, against all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cleantune.functional import knn
from cleantune.kernels.to_delete import nearest as module
from cleantune.kernels.to_delete.nearest import nearest


def rows(count: int = 300, width: int = 24, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return functional.normalize(torch.randn(count, width, generator=g) + shift, dim=1)


def all_pairs(x: Tensor) -> Tensor:
    return (x @ x.T).fill_diagonal_(-torch.inf)


def check(x: Tensor, k: int) -> None:
    index, cosine = nearest(x, k)
    pairs = all_pairs(x)
    torch.testing.assert_close(cosine, pairs.topk(k).values, atol=2e-6, rtol=0)
    torch.testing.assert_close(pairs.gather(1, index), cosine, atol=2e-6, rtol=0)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("columns", [65_536, 64, 8])
@pytest.mark.parametrize("cells", [24_000_000, 2048, 64])
def test_neighbors_are_those_of_all_pairs_whatever_the_block(
    cells: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    monkeypatch.setattr(module, "COLUMNS", columns)
    check(rows(301), 5)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_neighbors_that_bfloat16_cannot_tell_apart_are_still_the_nearest(shift: float) -> None:
    """With the shift all cosines lie within a hundredth of 1, where bfloat16 has steps of 1 / 256."""
    check(rows(400, shift=shift), 15)


def test_copies_and_rows_of_zeros_and_neighbors_that_point_away_are_found() -> None:
    x = rows(200)
    x[50:100] = x[:1]
    x[100:130] = 0
    check(x, 7)
    check(torch.cat([torch.eye(40), -torch.eye(40)]), 39)


def test_so_few_rows_that_all_others_are_neighbors_are_all_found() -> None:
    check(rows(6), 5)


def test_progress_ends_at_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 70)
    told: list[tuple[int, int]] = []
    nearest(rows(), 3, lambda done, count: told.append((done, count)))
    assert told[-1] == (300, 300)
    assert len(told) == 5


@pytest.mark.parametrize("native", [False, True])
def test_the_graph_is_the_same_with_and_without_native_bfloat16(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def spied(*args: Any) -> Any:
        called.append(args)
        return nearest(*args)

    monkeypatch.setattr(knn, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(knn, "nearest", spied)
    monkeypatch.setattr(knn, "SMALL", 100)
    x = np.random.default_rng(0).normal(size=(500, 16)).astype("f4")
    graph = knn.build_neighbor_graph(x, torch.zeros(16), 6)
    unit = functional.normalize(torch.from_numpy(x), dim=1)
    torch.testing.assert_close(graph.similarity, all_pairs(unit).topk(6).values, atol=2e-6, rtol=0)
    assert bool(called) == native
    assert graph.recall == 1.0
