"""Noise model against loops: Bayes' rule, concentrated flips, bounded fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cleantune.label_quality.noise_model import (
    MAIN_TARGET_FRACTION,
    STRAY_FRACTION,
    concentrate,
    concentration_of_flips,
    fit_noise_model,
    fit_noise_model_family,
    main_targets,
    subsample_rows,
)


def problem(
    count: int = 4000, num_classes: int = 4, noise: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of a good model that was flattened by symmetric noise, given labels and true ones."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(num_classes, (count,), generator=rng)
    logits = 1.5 * torch.randn(count, num_classes, generator=rng)
    logits[torch.arange(count), true] += 4
    sharp = torch.softmax(logits, 1)
    p = (1 - noise) * sharp + noise * (1 - sharp) / (num_classes - 1)
    wrong = torch.rand(count, generator=rng) < noise
    shift = torch.randint(1, num_classes, (count,), generator=rng)
    return p, torch.where(wrong, (true + shift) % num_classes, true), true


def test_posterior_follows_bayes_rule_of_a_naive_loop() -> None:
    p, y, _ = problem(count=300)
    model = fit_noise_model(p, y, 1.5, num_strata=4)
    labels = model.calibrate(p, y)
    for i in range(0, 300, 37):
        logs = np.log(np.clip(p[i].double().numpy(), 1e-6, None))
        m = np.exp(model.sharpness * logs) / np.exp(model.sharpness * logs).sum()
        q = np.exp(model.local_sharpness * logs) / np.exp(model.local_sharpness * logs).sum()
        stratum = int((model.edges < float(logs.max() - np.log(float(p[i].sum())))).sum())
        joint = []
        for k in range(4):
            nu = 1 / (1 + np.exp(-float(model.rate[k] + model.hardness[stratum])))
            local = min(q[y[i]] / (1 - q[k]), 1.0)
            named = (1 - model.local) * float(model.others[k, y[i]]) + model.local * local
            joint.append(m[k] * ((1 - nu) if k == int(y[i]) else nu * named))
        assert float(labels.p_wrong[i]) == pytest.approx(1 - joint[int(y[i])] / sum(joint), abs=1e-4)


def test_flips_are_the_sums_of_a_loop_over_labels() -> None:
    p, y, _ = problem(count=200)
    model = fit_noise_model(p, y)
    expected = torch.zeros(4, 4)
    for posterior, given in zip(model.calibrate(p, y).posterior, y.tolist(), strict=True):
        for c in range(4):
            expected[c, given] += posterior[c] if c != given else 0.0
    torch.testing.assert_close(model.flips(p, y), expected, atol=1e-4, rtol=1e-4)


def test_main_targets_equal_a_loop_and_exclude_no_label() -> None:
    flips = 10 * torch.rand(7, 7).square() * (1 - torch.eye(7))
    flips[3] = 0
    for k, (row, named) in enumerate(zip(flips.tolist(), main_targets(flips), strict=True)):
        main = [n if n >= MAIN_TARGET_FRACTION * max(row) else 0.0 for n in row]
        total = sum(main)
        for c in range(7):
            share = main[c] / total if total else 1 / 6
            expected = 0.0 if c == k else (1 - STRAY_FRACTION) * share + STRAY_FRACTION / 6
            assert float(named[c]) == pytest.approx(expected, abs=1e-6)


def test_concentration_is_one_for_pairs_and_zero_for_symmetric() -> None:
    eye = torch.eye(5)
    assert concentration_of_flips(3 * eye.roll(1, 1)) == pytest.approx(1.0)
    assert concentration_of_flips(1 - eye) == pytest.approx(0.0, abs=1e-6)
    assert concentration_of_flips(0 * eye) == 0.0
    assert concentration_of_flips(torch.tensor([[0.0, 6, 2], [1, 0, 1], [0, 0, 0]])) == pytest.approx(0.4)
    assert concentration_of_flips(torch.tensor([[0.0, 5], [0, 0]])) == 0.0


def test_few_wrong_labels_have_no_concentration() -> None:
    p, _, true = problem(noise=0.0)
    assert fit_noise_model(p, true).flip_concentration(p, true) == 0.0
    y = torch.where((true == 0) & (torch.arange(len(true)) % 3 > 0), 1, true)
    assert fit_noise_model(p, y).flip_concentration(p, y) > 0.7


def test_a_family_is_restricted_where_flips_are_concentrated() -> None:
    p, _, true = problem(noise=0.0)
    y = torch.where(torch.arange(len(true)) % 3 == 0, (true + 1) % 4, true)
    family = fit_noise_model_family(p, y, "probe", 0.55)
    assert len(family) == 4
    assert all(model.is_concentrated for model in family)
    assert not any(model.is_concentrated for model in fit_noise_model_family(p, y, "probe", 1.0))
    torch.testing.assert_close(family[0].others, concentrate(fit_noise_model(p, y), p, y).others)


def test_models_are_fitted_on_a_bounded_number_of_rows() -> None:
    assert len(subsample_rows(1_000_000, 1000)) == 2000
    assert len(subsample_rows(100, 10)) == 100
