"""Test of features that do not separate the classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleantune.label_quality.separability import class_separability, cohen_kappa


def test_label_noise_is_told_apart_from_useless_features() -> None:
    y = torch.arange(1500) % 3
    x = (3 * torch.randn(3, 12)[y] + torch.randn(1500, 12)).numpy()
    noisy = torch.where(torch.rand(1500) < 0.4, torch.randint(3, (1500,)), y)
    good = class_separability(x, noisy, 3, 100.0)
    assert good.identifiable
    assert not good.reason
    assert good.probe_kappa > 0.9
    bad = class_separability(np.random.default_rng(0).normal(size=(1500, 12)).astype("f4"), y, 3, 100.0)
    assert not bad.identifiable
    assert "do not separate" in bad.reason


def test_without_a_penalty_it_is_chosen_from_the_samples() -> None:
    y = torch.arange(600) % 3
    x = (3 * torch.randn(3, 12)[y] + torch.randn(600, 12)).numpy()
    assert class_separability(x, y, 3).probe_kappa > 0.9


def test_kappa_is_one_for_agreement_and_zero_by_chance() -> None:
    a, b = torch.randint(4, (20_000,)), torch.randint(4, (20_000,))
    assert cohen_kappa(a, a, 4) == pytest.approx(1.0)
    assert abs(cohen_kappa(a, b, 4)) < 0.03
