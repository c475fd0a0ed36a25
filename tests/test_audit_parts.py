"""What an audit is made of, against cleanlab, loops, probes that are fitted again, and all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cleantune.audit.score_labels import score_probabilities
from cleantune.functional.knn import build_neighbor_graph
from cleantune.label_quality import scores
from cleantune.label_quality.annotators import dawid_skene_posterior
from cleantune.label_quality.loo_ridge import class_separability, cohen_kappa, loo_ridge, stack, weighted_loo_ridge
from cleantune.label_quality.noise_model import fit_noise_model
from cleantune.label_quality.posterior import p_wrong


def probabilities(count: int = 400, classes: int = 5) -> tuple[Tensor, Tensor]:
    p = torch.softmax(2 * torch.randn(count, classes), 1).double()
    y = p.argmax(1)
    y[::4] = torch.randint(classes, (len(y[::4]),))
    return p, y


def blobs(count: int = 600, classes: int = 3, width: int = 12, gap: float = 3.0) -> tuple[np.ndarray, Tensor]:
    y = torch.arange(count) % classes
    centers = gap * torch.randn(classes, width)
    return (centers[y] + torch.randn(count, width)).numpy(), y


def test_confident_learning_equals_cleanlab() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    count = pytest.importorskip("cleanlab.count")
    p, y = probabilities()
    ours = scores.confident_learning_score(p, y).numpy()
    theirs = rank.get_label_quality_scores(y.numpy(), p.numpy(), adjust_pred_probs=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(
        scores.margin_score(p, y).numpy(),
        rank.get_label_quality_scores(y.numpy(), p.numpy(), method="normalized_margin"), atol=1e-6,
    )  # fmt: skip
    assert (
        scores.confident_joint(p, y).numpy() == count.compute_confident_joint(y.numpy(), p.numpy(), calibrate=False)
    ).all()
    np.testing.assert_allclose(score_probabilities(p, y).detectors["confident_learning"].numpy(), ours, atol=1e-5)


def test_trajectory_scores_are_means_over_epochs_within_0_and_1() -> None:
    p, y = probabilities()
    early = torch.softmax(torch.randn_like(p), 1)
    both = torch.stack([early, p])
    assert torch.allclose(
        scores.trajectory_confidence_score(both, y),
        (scores.self_confidence(early, y) + scores.self_confidence(p, y)) / 2,
    )
    margin = scores.trajectory_margin_score(both, y)
    assert torch.allclose(margin, (scores.margin(early, y) + scores.margin(p, y)) / 4 + 0.5)
    assert ((margin >= 0) & (margin <= 1)).all()


@pytest.mark.parametrize(
    "score", [scores.gce_mixture_score, scores.confident_learning_score, scores.margin_score, scores.agreement_score]
)
def test_scores_rank_a_contradicted_label_below_a_confirmed_one(score) -> None:  # type: ignore[no-untyped-def]
    p = torch.full((60, 3), 0.05).double()
    y = torch.arange(60) % 3
    p[torch.arange(60), y] = torch.linspace(0.8, 0.9, 60).double()
    p[:6] = torch.roll(p[:6], 1, 1)
    p = p / p.sum(1, keepdim=True)
    values = score(p.float(), y)
    assert ((values >= 0) & (values <= 1)).all()
    assert values[:6].max() < values[6:].min()


def test_the_distance_ratio_is_that_of_a_loop() -> None:
    x, y = blobs(60)
    graph = build_neighbor_graph(x, torch.from_numpy(x).mean(0), 59)
    ours = scores.distance_ratio_score(graph.index, graph.similarity, y)
    unit = functional.normalize(torch.from_numpy(x) - torch.from_numpy(x).mean(0), dim=1)
    d = 1 - unit @ unit.T
    for i in range(60):
        same = min(float(d[i, j]) for j in range(60) if j != i and y[j] == y[i]) ** 2
        other = min(float(d[i, j]) for j in range(60) if y[j] != y[i]) ** 2
        assert float(ours[i]) == pytest.approx(other / (same + other), abs=1e-3)


def test_leave_one_out_scores_are_those_of_probes_fitted_without_the_sample() -> None:
    x, y = blobs(80, width=6)
    ridge = loo_ridge(x, y, 3)
    z = ((torch.from_numpy(x) - ridge.mean) / ridge.std).double()
    prior = torch.bincount(y) / 80
    target = functional.one_hot(y).double() - prior
    # The prior and the mean stay those of all samples; 1 / N of the hat value stands for the mean that is left out.
    for i in range(0, 80, 9):
        rest = torch.arange(80) != i
        gram = z[rest].T @ z[rest] + ridge.penalty * torch.eye(6)
        alone = z[i] @ torch.linalg.solve(gram, z[rest].T @ target[rest]) + prior
        assert torch.allclose(alone.float(), ridge.loo[i], atol=0.03)


def test_a_probe_does_not_see_its_own_label() -> None:
    x, y = blobs()
    flipped = y.clone()
    flipped[0] = (y[0] + 1) % 3
    assert int(loo_ridge(x, flipped, 3).loo[0].argmax()) == int(y[0])


def test_stacked_parts_fit_the_labels_no_worse_than_the_best_part() -> None:
    x, y = blobs(gap=1.0)
    ridge, noise = loo_ridge(x, y, 3).loo, torch.randn(600, 3)
    both = functional.cross_entropy(stack([ridge, noise], y)(ridge, noise), y)
    alone = functional.cross_entropy(stack([ridge], y)(ridge), y)
    assert both <= alone + 1e-3
    assert both < functional.cross_entropy(stack([noise], y)(noise), y) - 0.2


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_where_classes_lie_apart_every_wrong_label_is_more_probably_wrong_than_right(rate: float) -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.arange(1200) % 4
    x = 6 * torch.eye(8)[true] + 0.5 * torch.randn(1200, 8, generator=g)
    flipped = torch.rand(1200, generator=g) < rate
    y = torch.where(flipped, (true + torch.randint(1, 4, (1200,), generator=g)) % 4, true)
    wrong = p_wrong(x, y, 4)
    assert torch.equal(wrong > 0.5, y != true)
    # of two opinions the more doubtful counts, so that the mean is a little high
    assert -0.02 < float(wrong.mean()) - float((y != true).float().mean()) < 0.05


def test_the_probability_of_a_wrong_label_is_the_greater_of_two_by_the_noise_model_of_leave_one_out_scores() -> None:
    x, y = blobs()
    ridge = loo_ridge(x, y, 3)
    first = opinion(ridge.loo, y)
    expected = torch.maximum(first, opinion(weighted_loo_ridge(x, y, ridge, 1 - first), y))
    torch.testing.assert_close(p_wrong(x.astype(np.float16), y, 3), expected, atol=5e-3, rtol=0)


def test_where_classes_are_said_to_be_alike_a_class_swollen_by_others_samples_is_doubted_more() -> None:
    """A rule gave half of two classes to a third: of their sizes nothing is left of the truth, three times 300."""
    g = torch.Generator().manual_seed(0)
    true = torch.arange(900) % 3
    x = 1.4 * torch.eye(8)[true] + torch.randn(900, 8, generator=g)
    y = torch.where(torch.rand(900, generator=g) < 0.5, torch.zeros_like(true), true)
    by_size, alike = (p_wrong(x, y, 3, even) for even in (0.0, 1.0))
    right = lambda wrong: float(((wrong > 0.5) == (y != true)).float().mean())  # noqa: E731
    assert right(alike) > right(by_size) + 0.1
    assert float(alike[y == 0].mean()) > float(by_size[y == 0].mean())


def test_what_is_said_is_a_probability_even_of_a_class_of_one_sample_and_features_that_never_vary() -> None:
    x, y = blobs()
    y[0] = 3
    for features in (x, np.zeros_like(x)):
        wrong = p_wrong(features, y, 5)
        assert bool(((wrong >= 0) & (wrong <= 1)).all())


def test_more_classes_than_pairs_are_fitted_for_still_part_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cleantune.label_quality.noise_model.PAIRED", 2)
    g = torch.Generator().manual_seed(0)
    true = torch.arange(900) % 3
    y = torch.where(torch.rand(900, generator=g) < 0.3, (true + 1) % 3, true)
    wrong = p_wrong(6 * torch.eye(8)[true] + 0.5 * torch.randn(900, 8, generator=g), y, 3)
    assert float(((wrong > 0.5) == (y != true)).float().mean()) > 0.99


def test_separation_tells_noise_from_features_that_say_nothing() -> None:
    x, y = blobs(1500)
    noisy = torch.where(torch.rand(1500) < 0.4, torch.randint(3, (1500,)), y)
    good = class_separability(x, noisy, 3, 100.0)
    bad = class_separability(np.random.default_rng(0).normal(size=(1500, 12)).astype("f4"), y, 3, 100.0)
    assert not good.cannot_tell
    assert bad.cannot_tell
    assert good.between > 0.9


def test_kappa_is_one_for_agreement_and_about_zero_by_chance() -> None:
    a, b = torch.randint(4, (20_000,)), torch.randint(4, (20_000,))
    assert cohen_kappa(a, a, 4) == pytest.approx(1.0)
    assert abs(cohen_kappa(a, b, 4)) < 0.03


def test_reliable_annotators_outweigh_a_doubtful_probe_and_unreliable_ones_do_not() -> None:
    true = torch.randint(3, (900,))
    doubtful = torch.full((900, 3), 0.2)
    doubtful[torch.arange(900), true] = 0.6
    other = (true + 1) % 3
    good = torch.where(torch.rand(2, 900) < 0.95, true, other)
    bad = torch.randint(3, (2, 900))
    assert (dawid_skene_posterior(doubtful, good).argmax(1) == true).float().mean() > 0.97
    assert (dawid_skene_posterior(doubtful, bad).argmax(1) == true).float().mean() > 0.9
    nobody = torch.full((1, 900), -1)
    assert torch.allclose(dawid_skene_posterior(doubtful, nobody), doubtful, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_leave_one_out_scores_are_those_of_weighted_ridge_probes_that_are_refitted(classes: int) -> None:
    x, y = blobs()
    x, y = x[:60].astype(np.float64), y[:60] % classes
    weight = torch.rand(60, generator=torch.Generator().manual_seed(2))
    weight[5] = 0
    ridge = loo_ridge(x.astype(np.float32), y, classes)
    found = weighted_loo_ridge(x.astype(np.float32), y, ridge, weight)
    rows = np.c_[(x - ridge.mean.numpy()) / ridge.std.numpy(), np.ones(60)]
    target = np.eye(classes)[y.numpy()]
    penalty = ridge.penalty * float(weight.mean()) * np.eye(rows.shape[1])
    penalty[-1, -1] = 1e-3
    for i in (0, 5, 17, 59):
        w = weight.double().numpy() * (np.arange(60) != i)
        refitted = np.linalg.solve(rows.T @ (rows * w[:, None]) + penalty, rows.T @ (target * w[:, None]))
        np.testing.assert_allclose(found[i].numpy(), rows[i] @ refitted, atol=2e-4)


def test_the_second_opinion_finds_wrong_labels_that_follow_a_pattern_and_trusts_none_that_the_first_doubts() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.arange(1500) % 5
    x = 1.6 * torch.eye(20)[true] + torch.randn(1500, 20, generator=g)
    y = torch.where(torch.rand(1500, generator=g) < 0.4, (true + 1) % 5, true)
    both = p_wrong(x, y, 5)
    first = opinion(loo_ridge(x, y, 5).loo, y)
    right = lambda wrong: float(((wrong > 0.5) == (y != true)).float().mean())  # noqa: E731
    assert bool((both >= first - 1e-6).all())
    assert right(both) > right(first) + 0.02


def opinion(loo: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What the noise model makes of scores."""
    p = stack([loo], y)(loo).softmax(1)
    return fit_noise_model(p, y).judge(p, y).p_wrong
