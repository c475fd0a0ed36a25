"""The scorer of labels: known noise is found, clean labels stay clean, probabilities come true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_noise_model import problem
from torch import Tensor

from cleantune.label_quality.noise_model import fit_noise_model
from cleantune.label_quality.scores import (
    calibrate,
    f_beta_threshold,
    label_error_probability,
    score_labels,
    score_probabilities,
)


def f1(listed: Tensor, wrong: Tensor) -> float:
    return float(2 * (listed & wrong).sum() / (listed.sum() + wrong.sum()))


def features(noise: float, count: int = 3000, num_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, Tensor, Tensor]:
    """Overlapping Gaussian classes, given labels with symmetric noise, and true ones."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(num_classes, (count,), generator=rng)
    x = torch.randn(count, 10, generator=rng) + 2.2 * torch.eye(10)[true]
    shift = torch.randint(1, num_classes, (count,), generator=rng)
    wrong = torch.rand(count, generator=rng) < noise
    return x.numpy(), torch.where(wrong, (true + shift) % num_classes, true), true


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_range_covers_the_rate_and_the_list_is_near_the_best(noise: float) -> None:
    x, y, true = features(noise)
    scores = score_labels(x, y, 4)
    wrong = y != true
    low, high = scores.noise_rate_range
    assert low <= float(wrong.float().mean()) <= high
    assert abs(scores.noise_rate - noise) < 0.05
    best = max(f1(scores.label_score < cut, wrong) for cut in np.linspace(0.02, 0.98, 49))
    assert f1(scores.is_issue, wrong) > best - 0.06
    assert (scores.suggested[wrong & scores.is_issue] == true[wrong & scores.is_issue]).float().mean() > 0.75


def test_p_wrong_falls_as_the_score_rises() -> None:
    x, y, _ = features(0.2)
    scores = score_labels(x[:2000], y[:2000], 4, held_out=(x[2000:], y[2000:]))
    order = scores.label_score.argsort()
    assert (scores.p_wrong[order].diff() <= 1e-6).all()
    for values in (scores.label_score, scores.p_wrong):
        assert ((values >= 0) & (values <= 1)).all()
    assert torch.equal(scores.is_issue, scores.p_wrong >= scores.threshold)


def test_held_out_labels_change_no_score_of_others() -> None:
    x, y, true = features(0.2)
    alone = score_labels(x[:2000], y[:2000], 4)
    first, second = (score_labels(x[:2000], y[:2000], 4, held_out=(x[2000:], v)) for v in (y[2000:], true[2000:]))
    for scores in (first, second):
        assert torch.equal(scores.label_score[:2000], alone.label_score)
        assert torch.equal(scores.p_wrong[:2000], alone.p_wrong)
    wrong = y[2000:] != true[2000:]
    assert f1(first.is_issue[2000:], wrong) > f1(alone.is_issue, y[:2000] != true[:2000]) - 0.1


def test_selection_and_list_share_their_probabilities() -> None:
    x, y, _ = features(0.2)
    scores = score_labels(x, y, 4)
    assert scores.probe is not None
    assert torch.equal(label_error_probability(scores.probe.loo_probabilities(), y), scores.p_wrong)


def test_labels_drawn_from_the_probabilities_are_hardly_wrong() -> None:
    rng = torch.Generator().manual_seed(1)
    p = torch.softmax(2 * torch.randn(4000, 4, generator=rng), 1)
    y = torch.multinomial(p, 1, generator=rng)[:, 0]
    assert score_probabilities(p, y, "probe").noise_rate < 0.03


def test_transition_matrix_names_the_confused_pair() -> None:
    p, _, true = problem(num_classes=3, noise=0.0)
    rng = torch.Generator().manual_seed(2)
    y = torch.where((true == 0) & (torch.rand(len(true), generator=rng) < 0.3), torch.ones_like(true), true)
    scores = score_probabilities(p, y, "probe")
    assert divmod(int(scores.transition.clone().fill_diagonal_(0).argmax()), 3) == (0, 1)
    assert float(scores.transition[0, 1]) == pytest.approx(0.3, abs=0.05)
    low, high = scores.transition_range[:, 0, 1]
    assert low <= 0.3 <= high
    assert torch.allclose(scores.transition.sum(1), torch.ones(3), atol=1e-4)


def test_probabilities_that_ignore_labels_are_not_identifiable() -> None:
    rng = torch.Generator().manual_seed(3)
    p, y = torch.softmax(torch.randn(2000, 5, generator=rng), 1), torch.randint(5, (2000,), generator=rng)
    scores = score_probabilities(p, y)
    assert not scores.identifiable
    assert "chance" in scores.reason
    assert not scores.is_issue.any()


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([0.5, 1.0, 2.0]))
def test_threshold_has_the_highest_expected_f_beta(values: list[float], beta: float) -> None:
    p = torch.tensor(values, dtype=torch.float64)
    if float(p.sum()) <= 0.5:
        assert f_beta_threshold(p, beta) > 1
        return

    def expected(threshold: float) -> float:
        listed = p >= threshold
        return (1 + beta**2) * float(p[listed].sum()) / (beta**2 * float(p.sum()) + int(listed.sum()))

    assert expected(f_beta_threshold(p, beta)) >= max(expected(float(v)) for v in p) - 1e-9


def test_calibration_is_monotone_and_keeps_the_mean() -> None:
    p, y, _ = problem()
    wrong = fit_noise_model(p, y).calibrate(p, y).p_wrong
    score = p.gather(1, y[:, None])[:, 0]
    smooth = calibrate(score, wrong)
    assert (smooth[score.argsort()].diff() <= 1e-6).all()
    assert float(smooth.mean()) == pytest.approx(float(wrong.mean()), abs=1e-4)


def test_calibrated_probabilities_come_true() -> None:
    p, y, true = problem(count=12_000)
    p_wrong = score_probabilities(p, y, "probe").p_wrong
    wrong = (y != true).float()
    for low, high in ((0.0, 0.1), (0.1, 0.9), (0.9, 1.01)):
        inside = (p_wrong >= low) & (p_wrong < high)
        if int(inside.sum()) > 100:
            assert float(wrong[inside].mean()) == pytest.approx(float(p_wrong[inside].mean()), abs=0.12)


TARGETS = {
    "cifar10n-aggregate-swin": (0.92, 0.02),
    "cifar10n-aggregate-resnet18": (0.75, 0.02),
    "cifar10n-worst-swin": (0.95, 0.03),
    "cifar10n-worst-resnet18": (0.88, 0.03),
    "cifar10-synthetic20-swin": (0.985, 0.015),
    "cifar10-synthetic20-resnet18": (0.94, 0.02),
}


@pytest.mark.parametrize("name", TARGETS)
def test_defaults_reach_their_targets_on_detection_arrays(name: str, shared: Path) -> None:
    with np.load(shared / "data" / "detection" / f"{name}.npz") as file:
        p, y, true = (file[key] for key in ("pred_probs", "given", "true"))
    scores = score_probabilities(p, torch.from_numpy(y.astype(np.int64)))
    wrong = torch.from_numpy(y != true)
    min_f1, max_rate_error = TARGETS[name]
    assert f1(scores.is_issue, wrong) >= min_f1
    assert abs(scores.noise_rate - float(wrong.float().mean())) <= max_rate_error
    low, high = scores.noise_rate_range
    assert low <= float(wrong.float().mean()) <= high
