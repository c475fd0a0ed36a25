from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cleantune.functional import metrics


@given(seed=st.integers(0, 100))
def test_auroc_equals_the_fraction_of_ordered_pairs(seed: int) -> None:
    r = np.random.default_rng(seed)
    score, right = r.integers(0, 6, 40).astype(float), r.random(40) < 0.6
    if right.all() or not right.any():
        assert metrics.auroc(score, right) is None
        return
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a in score[right] for b in score[~right]]
    assert abs(metrics.auroc(score, right) - sum(pairs) / len(pairs)) < 1e-12


def test_purity_and_recall_of_a_perfect_selection_are_one() -> None:
    right = np.array([True, False, True, True])
    assert metrics.purity(right.astype(float), right) == 1.0
    assert metrics.recall(right, right) == 1.0
    assert metrics.purity(np.array([1.0, 1.0, 0.0, 0.0]), right) == 0.5
    assert metrics.recall(np.array([True, True, False, False]), right) == 1 / 3


def test_undefined_metrics_are_none() -> None:
    nothing = np.zeros(3, dtype=bool)
    assert metrics.purity(np.zeros(3), ~nothing) is None
    assert metrics.recall(nothing, nothing) is None
    assert metrics.accuracy(np.zeros(0, dtype=int), np.zeros(0, dtype=int)) is None


def test_mcnemar_z_is_signed_and_zero_for_equal_models() -> None:
    r = np.random.default_rng(0)
    first = r.random(1000) < 0.7
    assert metrics.mcnemar_z(first, first) == 0.0
    second = first & (r.random(1000) < 0.9)
    assert metrics.mcnemar_z(first, second) > 5
    assert metrics.mcnemar_z(second, first) == -metrics.mcnemar_z(first, second)


def test_mcnemar_z_is_standard_normal_for_equal_models() -> None:
    r = np.random.default_rng(1)
    apart = [abs(metrics.mcnemar_z(r.random(800) < 0.6, r.random(800) < 0.6)) < 1.96 for _ in range(400)]
    assert 0.92 < np.mean(apart) < 0.98
