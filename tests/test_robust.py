"""The loss, weights and selection of each phase of `robust`, against sums by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleantune.methods.elr import TARGET
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Batch, LossOutput, Output, Selection
from cleantune.methods.robust import TUNE, Robust

N, C, ROWS = 8, 3, torch.tensor([5, 0, 2])


class FakeRun:
    """A run that trains nothing and keeps the loss and the selection of the last call of `learn`."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(4)
        self.y, self.classes, self.epoch = torch.arange(N) % C, C, 0
        self.rng, self.ledger = rng, Ledger(N)
        self.wrong = torch.rand(N, generator=rng)
        self.logits = 2 * torch.randn(len(ROWS), C, generator=rng)
        self.net: Any = lambda x: Output(self.logits, x, x)
        self.selection: Selection | None = None
        self.passes = 0.0
        self.value: Tensor | LossOutput = torch.zeros(())
        self.posterior_arguments = (0.0, 0.0)

    def p_wrong(self, class_balance: float, flip_concentration_threshold: float) -> Tensor:
        self.posterior_arguments = class_balance, flip_concentration_threshold
        return self.wrong

    def learn(
        self, net: nn.Module, loss: Callable[..., Tensor], selection: Selection | None = None, passes: float = 1.0
    ) -> None:
        self.selection, self.passes = selection, passes
        batch = Batch(ROWS, self.y[ROWS], torch.ones(len(ROWS)), (torch.zeros(len(ROWS), 2),))
        self.value = loss(net, batch)


def elr_by_hand(run: FakeRun, targets: Tensor, weight: Tensor, beta: float) -> float:
    """Return the mean of weight (CE + 3 log(1 - <t, p>)) after t <- beta t + (1 - beta) p, in float64."""
    total = 0.0
    for k, row in enumerate(ROWS.tolist()):
        p = run.logits[k].double().softmax(0)
        t = beta * targets[row].double() + (1 - beta) * p
        total += float(weight[row] * (-p[run.y[row]].log() + 3 * (1 - t @ p).log()))
    return total / len(ROWS)


def balanced(weight: Tensor, y: Tensor) -> Tensor:
    """Return weights with the same sum for all classes and the same total."""
    return torch.stack([w * weight.sum() / C / weight[y == c].sum() for w, c in zip(weight, y, strict=True)])


def test_tuning_minimizes_elr_with_moving_targets() -> None:
    run: Any = FakeRun()
    Robust().tune_round(run, 0.3)
    assert abs(float(run.value) - elr_by_hand(run, torch.zeros(N, C), torch.ones(N), 0.7)) < 1e-5
    torch.testing.assert_close(run.ledger[TARGET][ROWS], 0.3 * run.logits.softmax(1))


def test_tuning_selects_by_posterior_within_class_quotas() -> None:
    run: Any = FakeRun()
    Robust().tune_round(run, 0.3)
    rank = torch.tensor([int((run.wrong[run.y == c] < w).sum()) for w, c in zip(run.wrong, run.y, strict=True)])
    torch.testing.assert_close(run.ledger["p_clean"], (1 - run.wrong) * (rank < 3))
    assert run.posterior_arguments == (1.0, 0.55)
    torch.testing.assert_close(run.selection.weight, balanced(run.selection.mask.float(), run.y))


def test_a_round_spends_its_part_of_the_visits() -> None:
    run: Any = FakeRun()
    Robust(tune_visits=2.0).tune_round(run, 0.3)
    assert run.passes * int(run.selection.mask.sum()) == pytest.approx(0.3 * 2.0 * N)


def test_without_a_selection_every_label_is_trusted() -> None:
    run: Any = FakeRun()
    Robust(select="all", class_balance=0.0).tune_round(run, 1.0)
    assert run.selection.mask.all()
    assert torch.equal(run.selection.weight, torch.ones(N))
    assert torch.equal(run.ledger["p_clean"], torch.ones(N))


def test_the_final_probe_weights_labels_and_keeps_targets() -> None:
    run: Any = FakeRun()
    method = Robust()
    method.tune_round(run, 0.3)
    before = run.ledger[TARGET].clone()
    method.final_probe_epoch(run)
    assert run.selection is None, "the probe learns from every sample"
    assert abs(float(run.value) - elr_by_hand(run, before, balanced(run.ledger["p_clean"], run.y), 1.0)) < 1e-5
    assert torch.equal(run.ledger[TARGET], before)


@pytest.mark.parametrize("class_balance", [0.0, 1.0])
def test_the_first_probe_minimizes_class_weighted_gce(class_balance: float) -> None:
    run: Any = FakeRun()
    Robust(class_balance=class_balance).probe_epoch(run)
    p = run.logits.double().softmax(1)[torch.arange(len(ROWS)), run.y[ROWS]]
    weight = balanced(torch.ones(N), run.y)[ROWS] if class_balance else torch.ones(len(ROWS))
    assert abs(float(run.value) - float((weight * (1 - p**0.7) / 0.7).mean())) < 1e-5


def test_classes_of_similar_size_give_no_warning() -> None:
    run: Any = FakeRun()
    Robust().probe_epoch(run)
    assert isinstance(run.value, Tensor)


def test_classes_of_different_size_give_one_warning() -> None:
    run: Any = FakeRun()
    run.y = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    Robust().probe_epoch(run)
    assert isinstance(run.value, LossOutput)
    assert run.value.warning is not None
    for words in ("7 given labels", "smallest 1", "method.class_balance=0"):
        assert words in run.value.warning
    run.epoch = 1
    Robust().probe_epoch(run)
    assert isinstance(run.value, Tensor)


def test_no_class_balance_gives_no_warning() -> None:
    run: Any = FakeRun()
    run.y = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    Robust(class_balance=0.0).probe_epoch(run)
    assert isinstance(run.value, Tensor)


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_rounds_cover_the_schedule(rounds: int) -> None:
    method = Robust()
    phases = [p for p in Robust(tune=replace(TUNE, epochs=rounds)).phases() if p.name == "tune"]
    assert len(phases) == rounds
    assert phases[0].schedule_span[0] == 0.0
    assert phases[-1].schedule_span[1] == pytest.approx(1.0)
    assert all(a.schedule_span[1] == b.schedule_span[0] for a, b in itertools.pairwise(phases))
    if rounds > 1:
        assert phases[0].schedule_span[1] == method.first_round_fraction


def test_the_final_probe_can_be_left_out() -> None:
    assert [p.name for p in Robust().phases()] == ["probe", "tune", "tune", "probe"]
    assert [p.name for p in Robust(probe_after_tuning=False).phases()] == ["probe", "tune", "tune"]
