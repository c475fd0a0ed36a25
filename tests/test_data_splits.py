"""Stratified draws: largest remainder against a loop, bounds, seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.data.splits import canonical_split, draw_count, draw_fraction, quotas

class_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda s: sum(s) > 0)


def rows(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def naive_quotas(sizes: list[int], count: int) -> list[int]:
    exact = [size * count / sum(sizes) for size in sizes]
    quota = [int(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda c: (-(exact[c] - quota[c]), c))
    for c in by_remainder[: count - sum(quota)]:
        quota[c] += 1
    return quota


@given(class_sizes, st.floats(0, 1))
def test_quotas_without_bounds_are_largest_remainders(sizes, share):
    count = round(share * sum(sizes))
    s = np.array(sizes)
    assert quotas(s, count, np.zeros_like(s), s).sum() == count
    near = np.abs(quotas(s, count, np.zeros_like(s), s) - np.array(naive_quotas(sizes, count)))
    assert near.sum() == 0 or near.max() <= 1  # floats may order equal remainders otherwise


@given(class_sizes, st.floats(0, 0.99), st.integers(0, 99))
def test_draw_fraction_leaves_a_row_of_each_class(sizes, share, seed):
    y = rows(sizes)
    drawn = draw_fraction(y, share, np.random.default_rng(seed))
    left = np.bincount(y[~drawn], minlength=len(sizes))
    assert all(left[c] >= 1 for c in range(len(sizes)) if sizes[c])
    assert (drawn == draw_fraction(y, share, np.random.default_rng(seed))).all()
    assert drawn.sum() <= round(share * len(y))


@given(class_sizes, st.integers(1, 200), st.integers(0, 99))
def test_draw_count_is_exact_and_covers_classes(sizes, count, seed):
    y = rows(sizes)
    drawn = draw_count(y, count, np.random.default_rng(seed))
    assert drawn.sum() == min(count, len(y))
    if count >= sum(size > 0 for size in sizes):
        assert set(y[drawn]) == set(y)


def test_draws_of_balanced_classes_are_balanced():
    y = rows([5000] * 10)
    pool = y[draw_count(y, 10_000, np.random.default_rng(0))]
    drawn = draw_fraction(pool, 0.1, np.random.default_rng(0))
    assert np.bincount(pool[drawn]).tolist() == [100] * 10
    assert np.bincount(pool[~drawn]).tolist() == [900] * 10


def test_draw_fraction_depends_on_the_seed():
    y = rows([100, 100])
    assert (draw_fraction(y, 0.5, np.random.default_rng(0)) != draw_fraction(y, 0.5, np.random.default_rng(1))).any()


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        (" val ", "validation"),
        ("dev", "validation"),
        ("testing", "test"),
        ("oos_test", None),
    ],
)
def test_canonical_split_recognizes_usual_names(value, split):
    assert canonical_split(value) == split
