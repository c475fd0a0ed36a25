"""The cut-off: known noise is found, clean labels stay clean, probabilities come true, cuts are the best ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cleantune.audit.score_labels import score_features, score_probabilities
from cleantune.label_quality.noise_model import (
    calibrate,
    f_beta_threshold,
    fit_noise_model,
    label_scores,
    subsample_rows,
)


def problem(count: int = 4000, classes: int = 4, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of a good model that was flattened by symmetric noise, given labels and true ones."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (count,), generator=rng)
    logits = 3 * torch.randn(count, classes, generator=rng).mul(0.5)
    logits[torch.arange(count), true] += 4
    sure = torch.softmax(logits, 1)
    p = (1 - noise) * sure + noise * (1 - sure) / (classes - 1)
    wrong = torch.rand(count, generator=rng) < noise
    shift = torch.randint(1, classes, (count,), generator=rng)
    return p, torch.where(wrong, (true + shift) % classes, true), true


def f1(found: Tensor, wrong: Tensor) -> float:
    return float(2 * (found & wrong).sum() / (found.sum() + wrong.sum()))


def features(noise: float, count: int = 3000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, Tensor, Tensor]:
    """Overlapping Gaussian classes, given labels with symmetric noise, and true ones."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (count,), generator=rng)
    x = torch.randn(count, 10, generator=rng) + 2.2 * torch.eye(10)[true]
    shift = torch.randint(1, classes, (count,), generator=rng)
    wrong = torch.rand(count, generator=rng) < noise
    return x.numpy(), torch.where(wrong, (true + shift) % classes, true), true


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_a_known_noise_rate_lies_in_the_interval_and_its_labels_are_found(noise: float) -> None:
    x, y, true = features(noise)
    said = score_features(x, y, 4)
    wrong = y != true
    assert said.interval[0] <= float(wrong.float().mean()) <= said.interval[1]
    assert abs(said.rate - noise) < 0.05
    oracle = max(f1(said.score < cut, wrong) for cut in np.linspace(0.02, 0.98, 49))
    assert f1(said.issue, wrong) > oracle - 0.06


def test_labels_drawn_from_calibrated_probabilities_are_hardly_called_wrong() -> None:
    rng = torch.Generator().manual_seed(1)
    p = torch.softmax(2 * torch.randn(4000, 4, generator=rng), 1)
    y = torch.multinomial(p, 1, generator=rng)[:, 0]
    assert score_probabilities(p, y, "probe").rate < 0.03


def test_the_transition_matrix_names_the_pair_that_is_confused() -> None:
    p, _, true = problem(classes=3, noise=0.0)
    rng = torch.Generator().manual_seed(2)
    y = torch.where((true == 0) & (torch.rand(len(true), generator=rng) < 0.3), torch.ones_like(true), true)
    said = score_probabilities(p, y, "probe")
    off = said.transition.clone().fill_diagonal_(0)
    assert divmod(int(off.argmax()), 3) == (0, 1)
    assert float(said.transition[0, 1]) == pytest.approx(0.3, abs=0.05)
    low, high = said.transition_interval[:, 0, 1]
    assert low <= 0.3 <= high
    assert torch.allclose(said.transition.sum(1), torch.ones(3), atol=1e-4)


def test_probabilities_that_ignore_the_labels_cannot_tell() -> None:
    rng = torch.Generator().manual_seed(3)
    p, y = torch.softmax(torch.randn(2000, 5, generator=rng), 1), torch.randint(5, (2000,), generator=rng)
    said = score_probabilities(p, y)
    assert "chance" in said.doubt
    assert not said.issue.any()


def test_bayes_rule_is_that_of_a_naive_loop() -> None:
    p, y, _ = problem(count=300)
    model = fit_noise_model(p, y, 1.5, strata=4)
    said = model.judge(p, y)
    for i in range(0, 300, 37):
        logs = np.log(np.clip(p[i].double().numpy(), 1e-6, None))
        m = np.exp(model.sharpness * logs) / np.exp(model.sharpness * logs).sum()
        q = np.exp(model.local_sharpness * logs) / np.exp(model.local_sharpness * logs).sum()
        stratum = int((model.edges < float(logs.max() - np.log(float(p[i].sum())))).sum())
        joint = []
        for k in range(4):
            nu = 1 / (1 + np.exp(-float(model.rate[k] + model.hardness[stratum])))
            own = min(q[y[i]] / (1 - q[k]), 1.0)
            named = (1 - model.local) * float(model.others[k, y[i]]) + model.local * own
            joint.append(m[k] * ((1 - nu) if k == int(y[i]) else nu * named))
        assert float(said.p_wrong[i]) == pytest.approx(1 - joint[int(y[i])] / sum(joint), abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_balanced_cut_has_the_highest_expected_f_of_all_cuts(values: list[float], beta: float) -> None:
    p = torch.tensor(values, dtype=torch.float64)
    if float(p.sum()) <= 0.5:
        assert f_beta_threshold(p, beta) > 1
        return

    def expected(cut: float) -> float:
        found = p >= cut
        return (1 + beta**2) * float(p[found].sum()) / (beta**2 * float(p.sum()) + int(found.sum()))

    assert expected(f_beta_threshold(p, beta)) >= max(expected(float(v)) for v in p) - 1e-9


def test_calibrated_probabilities_fall_with_the_score_and_keep_their_mean() -> None:
    p, y, _ = problem()
    wrong = fit_noise_model(p, y).judge(p, y).p_wrong
    score = label_scores(p, y, wrong)
    smooth = calibrate(score, wrong)
    assert (smooth[score.argsort()].diff() <= 1e-6).all()
    assert float(smooth.mean()) == pytest.approx(float(wrong.mean()), abs=1e-4)
    assert ((score >= 0) & (score <= 1)).all()


def test_calibrated_probabilities_come_true() -> None:
    p, y, true = problem(count=12_000)
    said = score_probabilities(p, y, "probe")
    wrong = (y != true).float()
    for low, high in ((0.0, 0.1), (0.1, 0.9), (0.9, 1.01)):
        inside = (said.p_wrong >= low) & (said.p_wrong < high)
        if int(inside.sum()) > 100:
            assert float(wrong[inside].mean()) == pytest.approx(float(said.p_wrong[inside].mean()), abs=0.12)


def test_the_model_is_fitted_on_a_bounded_part() -> None:
    assert len(subsample_rows(1_000_000, 1000)) == 2000
    assert len(subsample_rows(100, 10)) == 100


TARGETS = {
    "cifar10n-aggregate-swin": (0.92, 0.02), "cifar10n-aggregate-resnet18": (0.75, 0.02),
    "cifar10n-worst-swin": (0.95, 0.03), "cifar10n-worst-resnet18": (0.88, 0.03),
    "cifar10-synthetic20-swin": (0.985, 0.015), "cifar10-synthetic20-resnet18": (0.94, 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_the_default_reaches_its_targets_on_the_detection_arrays(name: str, shared: Path) -> None:
    with np.load(shared / "data" / "detection" / f"{name}.npz") as file:
        p, y, true = (file[key] for key in ("pred_probs", "given", "true"))
    said = score_probabilities(p, torch.from_numpy(y.astype(np.int64)))
    wrong = torch.from_numpy(y != true)
    want, within = TARGETS[name]
    assert f1(said.issue, wrong) >= want
    assert abs(said.rate - float(wrong.float().mean())) <= within
    assert said.interval[0] <= float(wrong.float().mean()) <= said.interval[1]
