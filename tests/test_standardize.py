"""Tests of the mean and standard deviation of features."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleantune.functional.standardize import mean_and_std


@given(st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=30)
def test_mean_and_std_are_those_of_the_population(count, seed):
    x = np.random.default_rng(seed).normal(5, 3, (count, 4)).astype(np.float32)
    mean, std = mean_and_std(torch.from_numpy(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-5)
    expected = x.astype(np.float64).std(0)
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-5)


def test_mean_and_std_do_not_depend_on_block_size(monkeypatch):
    x = np.random.default_rng(0).normal(1000, 1, (100, 3)).astype(np.float32)
    whole = mean_and_std(x)
    monkeypatch.setattr("cleantune.functional.standardize.BLOCK_ROWS", 7)
    for ours, theirs in zip(mean_and_std(x), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_constant_dimension_has_standard_deviation_one():
    x = torch.randn(50, 3)
    x[:, 1] = 0.1
    _, std = mean_and_std(x)
    assert float(std[1]) == 1
    assert mean_and_std(torch.ones(5, 2))[1].tolist() == [1, 1]
