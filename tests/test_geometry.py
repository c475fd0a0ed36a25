"""CKA against its definition, and the other measures on known features."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from cleantune.errors import UserError
from cleantune.functional.geometry import (
    knn_accuracy,
    linear_cka,
    measure_geometry,
    probe_accuracy,
    tsne_embedding,
)

RNG = np.random.default_rng(0)


def naive_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic of Song et al., over all ordered choices of four different samples."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def naive_cka(a: np.ndarray, b: np.ndarray) -> float:
    k, m = a @ a.T, b @ b.T
    return naive_hsic(k, m) / np.sqrt(naive_hsic(k, k) * naive_hsic(m, m))


def test_cka_equals_the_u_statistic() -> None:
    a, b = RNG.normal(size=(7, 3)) + 2, RNG.normal(size=(7, 5))
    b[:, :3] += a
    assert linear_cka(a, b) == pytest.approx(naive_cka(a, b), abs=1e-9)


def test_cka_of_equal_features_is_one() -> None:
    a = RNG.normal(size=(50, 8))
    assert linear_cka(a, a) == pytest.approx(1, abs=1e-12)


def test_cka_is_invariant_to_rotation_shift_and_scale() -> None:
    a, b = RNG.normal(size=(60, 6)), RNG.normal(size=(60, 6))
    b += 0.5 * a
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert linear_cka(3 * a @ rotation + 7, b) == pytest.approx(linear_cka(a, b), abs=1e-9)


def test_cka_of_wide_independent_features_is_near_zero() -> None:
    found = [linear_cka(RNG.normal(size=(100, 300)), RNG.normal(size=(100, 300))) for _ in range(10)]
    assert abs(np.mean(found)) < 0.01


def test_cka_of_different_samples_is_a_user_error() -> None:
    with pytest.raises(UserError, match="here are 5, 6"):
        linear_cka(np.ones((5, 2)), np.ones((6, 2)))


def test_knn_accuracy_equals_a_loop() -> None:
    y = np.arange(30) % 3
    f = RNG.normal(size=(30, 4)) + y[:, None]
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    hits = 0
    for i in range(30):
        order = [j for j in np.argsort(-(unit @ unit[i]), kind="stable") if j != i][:20]
        hits += np.bincount(y[order]).argmax() == y[i]
    assert knn_accuracy(f, y) == pytest.approx(hits / 30)


def test_geometry_separates_clusters_from_mixtures() -> None:
    y = np.repeat([0, 1], 30)
    apart = RNG.normal(0, 0.05, (60, 5)) + np.eye(5)[y]
    mixed = RNG.normal(size=(60, 5))
    good, bad = measure_geometry(apart, mixed, y), measure_geometry(mixed, mixed, y)
    assert good.neighbors == good.probe == 1
    assert good.silhouette > 0.9 > 0.2 > bad.silhouette
    assert bad.probe < 0.8
    assert probe_accuracy(apart, y) == 1


def test_tsne_separates_clusters_and_is_deterministic() -> None:
    y = np.repeat([0, 1], 12)
    f = np.random.default_rng(1).normal(0, 0.05, (24, 5)) + np.eye(5)[y]
    points = tsne_embedding(f)
    assert points.shape == (24, 2)
    assert knn_accuracy(points - points.mean(0), y, 5) > 0.95
    assert np.array_equal(points, tsne_embedding(f))


def test_geometry_of_few_samples_is_a_user_error() -> None:
    with pytest.raises(UserError, match="8 samples"):
        measure_geometry(np.ones((4, 2)), np.ones((4, 2)), np.array([0, 0, 1, 1]))
