"""Leave-one-out class probabilities on labels of which some are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cleantune.functional.selection import balance_weights, within_class_quota
from cleantune.label_quality.logit_scaling import fit_logit_scaling
from cleantune.label_quality.loo_ridge import loo_ridge, weighted_loo_ridge
from cleantune.label_quality.noise_model import concentrate, fit_noise_model
from cleantune.label_quality.posterior import fit_loo_probe
from cleantune.label_quality.scores import label_error_probability

NUM_CLASSES = 12


def p_wrong(x: Tensor, y: Tensor, num_classes: int, balance: float = 1.0, concentration: float = 0.55) -> Tensor:
    """Probability of label errors by the probe."""
    probe = fit_loo_probe(x, y, num_classes, balance, concentration)
    return label_error_probability(probe.loo_probabilities(), y, concentration)


def paired_blobs(seed: int = 0, size: int = 60) -> tuple[Tensor, Tensor]:
    """Features of classes in pairs that are near one another, and their true labels."""
    g = torch.Generator().manual_seed(seed)
    true = torch.arange(size * NUM_CLASSES) % NUM_CLASSES
    center = 1.2 * torch.eye(30)[:NUM_CLASSES] + 1.2 * torch.eye(30)[NUM_CLASSES + torch.arange(NUM_CLASSES) // 2]
    return center[true] + 0.5 * torch.randn(len(true), 30, generator=g), true


def flip_one_way(true: Tensor, rate: float = 0.4) -> Tensor:
    """Labels of which every odd class lost a share to its even neighbor, and every even one to class 0."""
    moved = torch.rand(len(true), generator=torch.Generator().manual_seed(1)) < rate
    return torch.where(moved, torch.where(true % 2 == 1, true - 1, torch.zeros_like(true)), true)


def flip_anywhere(true: Tensor, rate: float, num_classes: int = NUM_CLASSES) -> Tensor:
    """Labels with symmetric noise."""
    g = torch.Generator().manual_seed(2)
    moved = torch.rand(len(true), generator=g) < rate
    return torch.where(moved, (true + torch.randint(1, num_classes, (len(true),), generator=g)) % num_classes, true)


def accuracy(wrong: Tensor, is_wrong: Tensor) -> float:
    return float(((wrong > 0.5) == is_wrong).float().mean())


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_separated_classes_reveal_every_wrong_label(rate: float) -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.arange(1200) % 4
    x = 6 * torch.eye(8)[true] + 0.5 * torch.randn(1200, 8, generator=g)
    y = flip_anywhere(true, rate, 4)
    wrong = p_wrong(x, y, 4)
    assert accuracy(wrong, y != true) > 0.998
    assert abs(float(wrong.mean()) - float((y != true).float().mean())) < 0.03


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_symmetric_noise_does_not_restrict_targets(rate: float) -> None:
    x, true = paired_blobs()
    y = flip_anywhere(true, rate)
    probe = fit_loo_probe(x, y, NUM_CLASSES, 0.0)
    assert not any(part.model.is_concentrated for part in probe.posteriors)
    assert torch.equal(probe.loo_probabilities(), fit_loo_probe(x, y, NUM_CLASSES, 0.0, 1.0).loo_probabilities())


def test_concentrated_flips_leave_classes_without_gains_trusted() -> None:
    x, true = paired_blobs()
    y = flip_one_way(true)
    poor = (true % 2 == 1) & (y == true)
    unrestricted, restricted = (p_wrong(x, y, NUM_CLASSES, 1.0, c) for c in (1.0, 0.55))
    trusted = [float((wrong[poor] < 0.5).float().mean()) for wrong in (unrestricted, restricted)]
    assert trusted[1] > 0.95
    assert trusted[1] > trusted[0]
    assert accuracy(restricted, y != true) > accuracy(unrestricted, y != true)


def test_concentrated_flips_use_the_last_of_three_probes() -> None:
    x, true = paired_blobs(size=30)
    y = flip_one_way(true)
    ridge = loo_ridge(x, y, NUM_CLASSES)
    loo = ridge.loo
    for _ in range(3):
        p = (fit_logit_scaling(loo, y).logits(loo) - torch.bincount(y).log()).softmax(1)
        wrong = concentrate(fit_noise_model(p, y), p, y).calibrate(p, y).p_wrong
        trust = (1 - wrong) * within_class_quota(wrong, y, NUM_CLASSES, 1.0)
        loo = weighted_loo_ridge(x, y, ridge, balance_weights(trust, y, NUM_CLASSES, 1.0)).loo
    probe = fit_loo_probe(x, y, NUM_CLASSES, 1.0)
    assert len(probe.posteriors) == 1
    torch.testing.assert_close(probe.loo_probabilities(), p, atol=1e-3, rtol=0)


def test_otherwise_probabilities_are_the_mean_of_two_probes() -> None:
    x, true = paired_blobs()
    y = flip_anywhere(true, 0.2)
    ridge = loo_ridge(x, y, NUM_CLASSES)
    p1 = fit_logit_scaling(ridge.loo, y).logits(ridge.loo).softmax(1)
    wrong = fit_noise_model(p1, y).calibrate(p1, y).p_wrong
    loo = weighted_loo_ridge(x, y, ridge, 1 - wrong).loo
    p2 = fit_logit_scaling(loo, y).logits(loo).softmax(1)
    mean = (p1 * p2).sqrt()
    probe = fit_loo_probe(x, y, NUM_CLASSES, 0.0)
    torch.testing.assert_close(probe.loo_probabilities(), mean / mean.sum(1, keepdim=True), atol=1e-3, rtol=0)


def test_a_second_probe_that_loses_the_noise_is_discarded() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.arange(2100) % 7
    x = 1.2 * torch.eye(60)[true] + torch.randn(2100, 60, generator=g)
    y = flip_anywhere(true, 0.75, 7)
    probe = fit_loo_probe(x, y, 7)
    rate = float(label_error_probability(probe.loo_probabilities(), y).mean())
    assert rate > 0.6


def test_balanced_prior_doubts_a_class_that_others_fell_into() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.arange(1600) % 4
    x = 1.4 * torch.eye(8)[true] + torch.randn(1600, 8, generator=g)
    y = torch.where(torch.rand(1600, generator=g) < 0.5, torch.zeros_like(true), true)
    as_given, balanced = (p_wrong(x, y, 4, balance) for balance in (0.0, 1.0))
    assert accuracy(balanced, y != true) > accuracy(as_given, y != true) + 0.1
    assert float(balanced[y == 0].mean()) > float(as_given[y == 0].mean())


def test_two_classes_keep_their_sizes_and_targets() -> None:
    x, true = paired_blobs(size=30)
    y = torch.where(torch.rand(len(true), generator=torch.Generator().manual_seed(3)) < 0.3, 0, true % 2)
    assert torch.equal(p_wrong(x, y, 2, 1.0), p_wrong(x, y, 2, 0.0, 1.0))


def test_new_samples_are_scored_like_the_fitted_ones() -> None:
    x, true = paired_blobs(size=120)
    y = flip_anywhere(true, 0.2)
    half = len(y) // 2
    probe = fit_loo_probe(x[:half], y[:half], NUM_CLASSES)
    new = probe.probabilities(x[half:].numpy())
    agreement = (new.argmax(1) == true[half:]).float().mean()
    assert float(agreement) > float((probe.loo_probabilities().argmax(1) == true[:half]).float().mean()) - 0.05
    weight, bias = probe.linear()
    linear = (((x[half:] - probe.mean) / probe.std) @ weight + bias).softmax(1)
    torch.testing.assert_close(linear, new, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("constant", [False, True])
def test_a_class_of_one_sample_and_constant_features_are_valid(constant: bool) -> None:
    y = torch.arange(600) % 3
    x = (3 * torch.randn(3, 12)[y] + torch.randn(600, 12)).numpy()
    y[0] = 3
    wrong = p_wrong(torch.from_numpy(np.zeros_like(x) if constant else x), y, 5)
    assert bool(((wrong >= 0) & (wrong <= 1)).all())


def test_many_classes_use_the_confusions_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cleantune.label_quality.noise_model.MAX_PAIRED_CLASSES", 2)
    g = torch.Generator().manual_seed(0)
    true = torch.arange(900) % 3
    y = torch.where(torch.rand(900, generator=g) < 0.3, (true + 1) % 3, true)
    wrong = p_wrong(6 * torch.eye(8)[true] + 0.5 * torch.randn(900, 8, generator=g), y, 3)
    assert accuracy(wrong, y != true) > 0.99
