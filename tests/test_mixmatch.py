"""DivideMix and UNICON: losses, targets, selection, and one whole step, each against a second writing by loops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.functional.selection import keep_at_least, lowest_per_class
from cleantune.methods.dividemix import DivideMix
from cleantune.methods.ledger import Ledger
from cleantune.methods.mixmatch import (
    MixUp,
    Network,
    linear_rampup,
    mixup_logits,
    sample_mixup,
    semi_supervised_loss,
    soft_targets,
)
from cleantune.methods.protocol import Batch
from cleantune.methods.unicon import UNICON
from cleantune.training.heads import LinearHead, ProjectedHead

C, D, B, U = 3, 5, 4, 6


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


# -- losses ------------------------------------------------------------------------------------------------------------


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


@given(seed=st.integers(0, 200))
def test_jsd_equals_its_definition_by_two_divergences(seed: int) -> None:
    p, y = random(20, C, seed=seed, scale=3).softmax(1), torch.arange(20) % C
    expected = []
    for row, label in zip(p.double().tolist(), y.tolist(), strict=True):
        hot = [float(c == label) for c in range(C)]
        middle = [(a + b) / 2 for a, b in zip(row, hot, strict=True)]
        expected.append((kl(hot, middle) + kl(row, middle)) / 2)
    torch.testing.assert_close(losses.jsd_to_label(p, y), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    by_two = torch.tensor(expected) / math.log(2)
    torch.testing.assert_close(losses.jsd_to_label(p, y, 2.0), by_two, rtol=1e-4, atol=1e-6)


def test_jsd_falls_in_p_from_ln_2_to_zero() -> None:
    own = torch.linspace(0, 1, 101)
    found = losses.jsd_to_label(torch.stack([own, 1 - own], 1), torch.zeros(101, dtype=torch.int64))
    assert float(found[0]) == pytest.approx(math.log(2))
    assert float(found[-1]) == 0
    assert bool((found.diff() < 0).all())


def test_nt_xent_equals_a_loop_in_float64() -> None:
    one, two = random(U, 4, seed=1), random(U, 4, seed=2)
    rows = [r / r.norm() for r in torch.cat([one, two]).double()]
    total = 0.0
    for i in range(2 * U):
        other = math.exp(float(rows[i] @ rows[(i + U) % (2 * U)]) / 0.05)
        total -= math.log(other / sum(math.exp(float(rows[i] @ rows[j]) / 0.05) for j in range(2 * U) if j != i))
    torch.testing.assert_close(losses.nt_xent(one, two, 0.05), torch.tensor(total / (2 * U)), rtol=1e-4, atol=1e-5)


def test_uniform_penalty_is_the_divergence_from_uniform() -> None:
    logits = random(B, C, seed=3, scale=2)
    mean = np.mean([softmax(row) for row in logits.double().tolist()], 0).tolist()
    assert float(losses.uniform_penalty(logits)) == pytest.approx(kl([1 / C] * C, mean), rel=1e-5)
    assert float(losses.uniform_penalty(torch.zeros(B, C))) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(float(losses.uniform_penalty(torch.tensor([[1000.0, 0.0, 0.0]]))))


def test_squared_error_and_negative_entropy_equal_loops() -> None:
    logits, target = random(B, C, seed=4), random(B, C, seed=5).softmax(1)
    p = [softmax(row) for row in logits.double().tolist()]
    squares = [
        np.mean([(a - b) ** 2 for a, b in zip(r, t, strict=True)]) for r, t in zip(p, target.tolist(), strict=True)
    ]
    entropy = [sum(v * math.log(v) for v in row) for row in p]
    torch.testing.assert_close(
        losses.squared_error(logits, target).double(), torch.tensor(np.array(squares)), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        losses.negative_entropy(logits).double(), torch.tensor(entropy, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


@given(seed=st.integers(0, 50), temperature=st.floats(0.1, 1.0))
def test_sharpen_is_a_normalized_power(seed: int, temperature: float) -> None:
    p = random(B, C, seed=seed).softmax(1)
    power = p.double() ** (1 / temperature)
    torch.testing.assert_close(
        losses.sharpen(p, temperature).double(), power / power.sum(1, keepdim=True), rtol=1e-3, atol=1e-6
    )


# -- selection ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_lowest_per_class_takes_the_smallest_of_every_class(seed: int, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    n, classes = int(torch.randint(1, 80, (), generator=g)), int(torch.randint(1, 9, (), generator=g))
    y, value = torch.randint(classes, (n,), generator=g), torch.rand(n, generator=g)
    keep = lowest_per_class(value, y, classes, share)
    each = max(1, int(share * n / classes))
    for c in range(classes):
        members = [i for i in range(n) if y[i] == c]
        best = sorted(members, key=lambda i: float(value[i]))[:each]
        assert {i for i in members if keep[i]} == set(best)
        assert len(best) == min(len(members), each)


def test_keep_at_least_takes_the_highest_scores() -> None:
    score = torch.tensor([0.1, 0.4, 0.9, 0.3])
    assert keep_at_least(score > 0.5, score, 1).tolist() == [False, False, True, False]
    assert keep_at_least(score > 0.95, score, 2).tolist() == [False, True, True, False]
    assert keep_at_least(score > 0.95, score, 9).all()


# -- one step by hand --------------------------------------------------------------------------------------------------


def nets() -> tuple[LinearHead, LinearHead]:
    made = []
    for k in range(2):
        head = LinearHead(D, C, init="zeros")
        with torch.no_grad():
            head.linear.weight.copy_(random(C, D, seed=10 + k))
            head.linear.bias.copy_(random(C, seed=20 + k))
        made.append(head)
    return made[0], made[1]


def batch(views: int = 2, trust: tuple[float, ...] = (1.0, 0.9, 0.7, 0.55)) -> Batch:
    unlabeled = Batch(torch.arange(U), torch.zeros(U, dtype=torch.int64), torch.zeros(U), _views(U, views, 40))
    return Batch(torch.arange(B), torch.tensor([0, 2, 1, 1]), torch.tensor(trust), _views(B, views, 30), unlabeled)


def _views(count: int, views: int, seed: int) -> tuple[Tensor, ...]:
    return tuple(random(count, D, seed=seed + k) for k in range(views))


def p_of(head: LinearHead, x: Tensor) -> list[list[float]]:
    weight, bias = head.linear.weight.detach().double(), head.linear.bias.detach().double()
    return [softmax((weight @ row + bias).tolist()) for row in x.double()]


def sharp(p: list[float], power: float = 2.0) -> list[float]:
    s = [v**power for v in p]
    return [v / sum(s) for v in s]


def goals_by_hand(net: LinearHead, peer: LinearHead, given: Batch) -> tuple[list[list[float]], list[list[float]]]:
    """Co-refined and co-guessed targets, by loops in float64."""
    unlabeled = cast(Batch, given.unlabeled)
    own = [p_of(net, v) for v in given.views[:2]]
    all_four = [p_of(n, v) for n in (net, peer) for v in unlabeled.views[:2]]
    labeled = []
    for i in range(B):
        w = float(given.weight[i])
        labeled.append(sharp([w * (c == given.y[i]) + (1 - w) * (own[0][i][c] + own[1][i][c]) / 2 for c in range(C)]))
    guessed = [sharp([sum(p[i][c] for p in all_four) / 4 for c in range(C)]) for i in range(U)]
    return labeled, guessed


def step_by_hand(
    net: LinearHead,
    goals: tuple[list[list[float]], list[list[float]]],
    given: Batch,
    at: int,
    mixup: MixUp,
    unlabeled_weight: float,
) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients of weight and bias of a step in float64; the gradient from the chain rule by hand."""
    unlabeled = cast(Batch, given.unlabeled)
    x = torch.cat([given.views[at], given.views[at + 1], unlabeled.views[at], unlabeled.views[at + 1]]).double()
    goal = torch.tensor(goals[0] * 2 + goals[1] * 2, dtype=torch.float64)
    x = mixup.lam * x + (1 - mixup.lam) * x[mixup.permutation]
    goal = mixup.lam * goal + (1 - mixup.lam) * goal[mixup.permutation]
    logits = x @ net.linear.weight.detach().double().T + net.linear.bias.detach().double()
    p = torch.tensor([softmax(row) for row in logits.tolist()], dtype=torch.float64)
    rows, first = len(p), 2 * B
    mean = p.mean(0)
    value, by_p = 0.0, torch.zeros_like(p)  # d loss / d p, but for the cross-entropy
    slope = torch.zeros_like(p)  # d loss / d logits
    for i in range(rows):
        for c in range(C):
            if i < first:
                value -= float(goal[i, c] * p[i, c].log()) / first
                slope[i, c] += (p[i, c] - goal[i, c]) / first
            else:
                value += unlabeled_weight * float((p[i, c] - goal[i, c]) ** 2) / ((rows - first) * C)
                by_p[i, c] += unlabeled_weight * 2 * (p[i, c] - goal[i, c]) / ((rows - first) * C)
            by_p[i, c] -= 1 / (C * mean[c] * rows)
    value += sum(1 / C * math.log(1 / C / float(m)) for m in mean)
    for i in range(rows):
        inner = sum(float(by_p[i, c] * p[i, c]) for c in range(C))
        for c in range(C):
            slope[i, c] += p[i, c] * (by_p[i, c] - inner)
    return value, slope.T @ x, slope.sum(0)


class Drawing:
    """The part of a run that a step uses."""

    def __init__(self, progress: float) -> None:
        self.rng, self.progress = torch.Generator().manual_seed(5), progress


def test_a_step_of_dividemix_equals_float64_by_hand() -> None:
    net, peer = nets()
    method, given = DivideMix(scope="all", lambda_u=20.0, ramp=0.5, warm_up_all=1), batch()
    value = method.loss(cast(Any, Drawing(progress=2.0)), peer)(net, given)  # half of two epochs of ramp
    value.backward()  # type: ignore[no-untyped-call]
    mixup = sample_mixup(2 * (B + U), 4.0, torch.Generator().manual_seed(5))
    expected, weight, bias = step_by_hand(net, goals_by_hand(net, peer, given), given, 0, mixup, 10.0)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(cast(Tensor, net.linear.weight.grad).double(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cast(Tensor, net.linear.bias.grad).double(), bias, rtol=1e-4, atol=1e-6)
    assert peer.linear.weight.grad is None, "the peer only guesses"


@pytest.mark.parametrize("contrast", [False, True])
def test_a_step_of_unicon_equals_float64_by_hand(contrast: bool) -> None:
    plain, peer = nets()
    net = ProjectedHead(plain, 4, seed=0)
    given = batch(views=4)
    method = UNICON(scope="all", lambda_u=30.0, lambda_c=0.025 if contrast else 0.0, warm_up_all=1, ramp=0.5)
    value = method.loss(cast(Any, Drawing(progress=5.0)), peer)(net, given)
    value.backward()  # type: ignore[no-untyped-call]
    mixup = sample_mixup(2 * (B + U), 4.0, torch.Generator().manual_seed(5))
    expected, weight, bias = step_by_hand(plain, goals_by_hand(plain, peer, given), given, 2, mixup, 30.0)
    if contrast:  # it moves the projection alone: z is a fixed feature here
        views = cast(Batch, given.unlabeled).views[2:4]
        z = torch.cat(views).double() @ net.projection[0].weight.detach().double().T + net.projection[0].bias.detach()
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
        expected += 0.025 * float(losses.nt_xent(z[:U].float(), z[U:].float(), 0.05))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(cast(Tensor, plain.linear.weight.grad).double(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cast(Tensor, plain.linear.bias.grad).double(), bias, rtol=1e-4, atol=1e-6)
    assert (net.projection[0].weight.grad is not None) == contrast


# -- targets and MixUp -------------------------------------------------------------------------------------------------


def test_soft_targets_sum_to_one_without_gradient() -> None:
    net, peer = nets()
    made = soft_targets(net, peer, batch(), 0.5)
    assert made.unlabeled is not None
    for target in made:
        torch.testing.assert_close(cast(Tensor, target).sum(1), torch.ones(len(cast(Tensor, target))))
        assert not cast(Tensor, target).requires_grad


def test_trusted_labels_stay_one_hot() -> None:
    net, peer = nets()
    given = batch(trust=(1.0,) * B)
    torch.testing.assert_close(soft_targets(net, peer, given, 0.5).labeled, nn.functional.one_hot(given.y, C).float())


@given(seed=st.integers(0, 300), alpha=st.sampled_from([0.1, 0.5, 4.0]))
def test_sample_mixup_keeps_at_least_half_of_a_row(seed: int, alpha: float) -> None:
    mixup = sample_mixup(12, alpha, torch.Generator().manual_seed(seed))
    assert 0.5 <= mixup.lam <= 1
    assert sorted(mixup.permutation.tolist()) == list(range(12))


def test_mixing_features_equals_mixing_logits_of_a_linear_head() -> None:
    net, _ = nets()
    views, mixup = _views(B, 2, 50), sample_mixup(2 * B, 4.0, torch.Generator().manual_seed(1))
    texts = tuple({"x": v} for v in views)

    def of_texts(x: dict[str, Tensor]) -> Any:
        return net(x["x"])

    torch.testing.assert_close(mixup_logits(net, views, mixup), mixup_logits(cast(Network, of_texts), texts, mixup))


def test_clean_only_ignores_unlabeled_samples() -> None:
    net, peer = nets()
    alone = batch()._replace(unlabeled=None)
    run = cast(Any, Drawing(progress=9.0))
    run.rng.manual_seed(1)
    one = DivideMix(scope="all").loss(run, peer)(net, alone)
    run.rng.manual_seed(1)
    web = DivideMix(scope="all", clean_only=True).loss(run, peer)(net, batch())
    torch.testing.assert_close(one, web)
    value = semi_supervised_loss(
        net, alone, soft_targets(net, peer, alone, 0.5), slice(0, 2), 7.0, lambda n: MixUp(1.0, torch.arange(n))
    )
    assert math.isfinite(float(value.detach()))


def test_linear_rampup_rises_after_the_warm_up() -> None:
    found = [linear_rampup(10.0, t, 1, 5, 0.5) for t in (0.0, 1.0, 1.5, 2.0, 3.0, 4.9)]
    assert found == pytest.approx([0, 0, 2.5, 5, 10, 10])
    assert linear_rampup(10.0, 1.0, 1, 5, 0.0) == 10.0


# -- judging -----------------------------------------------------------------------------------------------------------


def test_unicon_lowers_its_threshold_only_with_base_two() -> None:
    high = torch.tensor([0.2, 0.69, 0.69, 0.69])
    assert UNICON().threshold(high) == pytest.approx(float(high.mean()))
    bits = high / math.log(2)
    lowered = float(bits.mean()) - (float(bits.mean()) - float(bits.min())) / 5
    assert UNICON(log_base="2").threshold(bits) == pytest.approx(lowered)


def test_unicon_split_has_weights_and_unlabeled_ratio() -> None:
    y = torch.arange(40) % 4
    run = cast(Any, SimpleNamespace(y=y, classes=4, ledger=Ledger(40)))
    divergence = torch.cat([torch.full((8,), 0.1), torch.full((32,), 0.6)])
    selection = UNICON().split(run, divergence)
    assert torch.bincount(y[selection.mask], minlength=4).tolist() == [2] * 4
    assert selection.weight[selection.mask].tolist() == [1.0] * 8
    assert selection.weight[~selection.mask].tolist() == pytest.approx([0.4] * 32)
    assert selection.unlabeled_ratio == pytest.approx(1 / (2 * 0.2))
    assert UNICON().split(run, torch.full((40,), 0.3)).unlabeled_ratio == 8.0, "nothing below the mean"
    half = torch.cat([torch.full((30,), 0.1), torch.full((10,), 0.6)])
    assert UNICON().split(run, half).unlabeled_ratio == 1.0


def test_dividemix_fills_an_empty_side() -> None:
    method = DivideMix(tau=0.5)
    p = torch.linspace(0.0, 0.4, 100)
    assert int(method.split(p).mask.sum()) == 64
    sure = method.split(torch.ones(100))
    assert sure.mask.all()
    assert sure.unlabeled is None


def test_dividemix_averages_losses_over_its_history() -> None:
    scores = [random(30, 2, seed=k) for k in range(4)]
    run = cast(Any, SimpleNamespace(y=torch.arange(30) % 2, ledger=Ledger(30), nets=[nn.Identity()] * 2, epoch=0))
    method, seen = DivideMix(warm_up_head=0, history=3), []
    for epoch, logits in enumerate(scores):
        run.epoch, run.score = epoch, lambda fn, net, logits=logits: fn(run.y, logits)
        method.clean_probabilities(run, 0)
        seen.append(losses.cross_entropy(logits, run.y))
    torch.testing.assert_close(run.ledger["losses_0"], torch.stack(seen[-3:], 1))


def test_nt_xent_is_symmetric_in_views_and_order() -> None:
    one, two = random(U, 4, seed=1), random(U, 4, seed=2)
    order = torch.randperm(U, generator=torch.Generator().manual_seed(0))
    for a, b in itertools.pairwise([(one, two), (two, one), (one[order], two[order])]):
        torch.testing.assert_close(losses.nt_xent(*a, 0.5), losses.nt_xent(*b, 0.5))
