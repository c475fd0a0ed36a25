"""Leave-one-out ridge probes against probes that are fitted again without the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cleantune.label_quality.logit_scaling import fit_logit_scaling
from cleantune.label_quality.loo_ridge import loo_ridge, weighted_loo_ridge


def blobs(count: int = 600, num_classes: int = 3, dim: int = 12, gap: float = 3.0) -> tuple[np.ndarray, Tensor]:
    """Features of Gaussian classes, and their labels."""
    y = torch.arange(count) % num_classes
    return (gap * torch.randn(num_classes, dim)[y] + torch.randn(count, dim)).numpy(), y


def test_loo_scores_equal_probes_fitted_without_the_sample() -> None:
    x, y = blobs(80, dim=6)
    ridge = loo_ridge(x, y, 3)
    z = ((torch.from_numpy(x) - ridge.mean) / ridge.std).double()
    prior = torch.bincount(y) / 80
    target = functional.one_hot(y).double() - prior
    # Prior and mean stay those of all samples; 1 / N of the hat value accounts for the mean that is left out.
    for i in range(0, 80, 9):
        rest = torch.arange(80) != i
        gram = z[rest].T @ z[rest] + ridge.penalty * torch.eye(6)
        expected = z[i] @ torch.linalg.solve(gram, z[rest].T @ target[rest]) + prior
        assert torch.allclose(expected.float(), ridge.loo[i], atol=0.03)


def test_a_wrong_label_does_not_reach_its_own_score() -> None:
    x, y = blobs()
    flipped = y.clone()
    flipped[0] = (y[0] + 1) % 3
    assert int(loo_ridge(x, flipped, 3).loo[0].argmax()) == int(y[0])


def test_scores_of_new_samples_are_linear_in_features() -> None:
    x, y = blobs()
    ridge = loo_ridge(x, y, 3)
    expected = ((torch.from_numpy(x) - ridge.mean) / ridge.std) @ ridge.weight + ridge.bias
    torch.testing.assert_close(ridge.scores(x.astype(np.float32)), expected, atol=1e-5, rtol=1e-5)
    assert float((expected.argmax(1) == y).float().mean()) > 0.95
    assert ridge.scores(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_weighted_loo_scores_equal_refitted_probes(num_classes: int) -> None:
    x, y = blobs()
    x, y = x[:60].astype(np.float64), y[:60] % num_classes
    weight = torch.rand(60, generator=torch.Generator().manual_seed(2))
    weight[5] = 0
    ridge = loo_ridge(x.astype(np.float32), y, num_classes)
    weighted = weighted_loo_ridge(x.astype(np.float32), y, ridge, weight)
    rows = np.c_[(x - ridge.mean.numpy()) / ridge.std.numpy(), np.ones(60)]
    target = np.eye(num_classes)[y.numpy()]
    penalty = ridge.penalty * float(weight.mean()) * np.eye(rows.shape[1])
    penalty[-1, -1] = 1e-3

    def refit(w: np.ndarray) -> np.ndarray:
        return np.linalg.solve(rows.T @ (rows * w[:, None]) + penalty, rows.T @ (target * w[:, None]))

    for i in (0, 5, 17, 59):
        expected = rows[i] @ refit(weight.double().numpy() * (np.arange(60) != i))
        np.testing.assert_allclose(weighted.loo[i].numpy(), expected, atol=2e-4)
    new = weighted.scores(x.astype(np.float32)).numpy()
    np.testing.assert_allclose(new, rows @ refit(weight.double().numpy()), atol=2e-4)


def test_scaled_scores_fit_the_labels_better_than_unscaled() -> None:
    x, y = blobs(gap=1.0)
    loo = loo_ridge(x, y, 3).loo
    scaled = fit_logit_scaling(loo, y).logits(loo)
    assert functional.cross_entropy(scaled, y) < functional.cross_entropy(loo, y) - 0.1
    for factor in (0.8, 1.25):
        assert functional.cross_entropy(scaled, y) <= functional.cross_entropy(factor * scaled, y) + 1e-3
