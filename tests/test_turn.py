"""TURN's default: what it learns by in the tuning and in the probes of tuned features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleantune.methods import METHODS
from cleantune.methods.elr import TARGET
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Batch, LossOutput, Output, Selection

N, C, ROWS = 8, 3, torch.tensor([5, 0, 2])


class Asked:
    """A run that keeps the loss and the plan it is asked to learn by."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(4)
        self.y, self.classes, self.epoch = torch.arange(N) % C, C, 0
        self.rng, self.ledger, self.backbone_changed = g, Ledger(N), False
        self.wrong = torch.rand(N, generator=g)
        self.logits = 2 * torch.randn(len(ROWS), C, generator=g)
        self.net: Any = lambda x: Output(self.logits, x, x)
        self.selection: Selection | None = None
        self.value: Tensor | LossOutput = torch.zeros(())
        self.class_balance = self.flip_concentration_threshold = 0.0

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Tensor:
        self.class_balance, self.flip_concentration_threshold = class_balance, flip_concentration_threshold
        return self.wrong

    def learn(self, net: nn.Module, loss: Callable[..., Tensor], selection: Selection | None = None, **_: Any) -> None:
        self.selection = selection
        batch = Batch(ROWS, self.y[ROWS], torch.ones(len(ROWS)), (torch.zeros(len(ROWS), 2),))
        self.value = loss(net, batch)


def by_hand(run: Asked, targets: Tensor, weight: Tensor, elr_beta: float) -> float:
    """Mean of weight (CE + 3 log(1 - <t, p>)) after t <- elr_beta t + (1 - elr_beta) p, in float64."""
    total = 0.0
    for k, row in enumerate(ROWS.tolist()):
        p = run.logits[k].double().softmax(0)
        t = elr_beta * targets[row].double() + (1 - elr_beta) * p
        total += float(weight[row] * (-p[run.y[row]].log() + 3 * (1 - t @ p).log()))
    return total / len(ROWS)


def alike(trust: Tensor, y: Tensor) -> Tensor:
    """The trust of each sample, times what makes the sums of all classes equal and keeps the whole."""
    return torch.stack([t * trust.sum() / C / trust[y == c].sum() for t, c in zip(trust, y, strict=True)])


def test_the_tuning_learns_by_cross_entropy_and_elrs_pull_with_targets_that_move() -> None:
    run = Asked()
    METHODS["turn"]().tune_epoch(run)  # type: ignore[attr-defined]
    assert abs(float(run.value) - by_hand(run, torch.zeros(N, C), torch.ones(N), 0.7)) < 1e-5
    torch.testing.assert_close(run.ledger[TARGET][ROWS], 0.3 * run.logits.softmax(1))
    room = torch.tensor([int((run.wrong[run.y == c] < w).sum()) < 3 for w, c in zip(run.wrong, run.y, strict=True)])
    torch.testing.assert_close(run.ledger["p_clean"], (1 - run.wrong) * room)
    assert (run.class_balance, run.flip_concentration_threshold) == (1.0, 0.45)
    assert run.selection is not None
    torch.testing.assert_close(run.selection.weight, alike(run.selection.keep.float(), run.y))


def test_a_probe_of_tuned_features_weighs_each_label_by_how_probably_it_is_right_and_moves_no_target() -> None:
    run, method = Asked(), METHODS["turn"]()
    method.tune_epoch(run)  # type: ignore[attr-defined]
    before, run.backbone_changed = run.ledger[TARGET].clone(), True
    method.probe_epoch(run)  # type: ignore[attr-defined]
    assert run.selection is None, "it learns from every sample, so that it can bear witness"
    assert abs(float(run.value) - by_hand(run, before, alike(run.ledger["p_clean"], run.y), 1.0)) < 1e-5
    assert torch.equal(run.ledger[TARGET], before)


@pytest.mark.parametrize("class_balance", [0.0, 1.0])
def test_the_first_probe_learns_by_gce_alone_and_weighs_classes_alike_where_asked(class_balance: float) -> None:
    run = Asked()
    replace(METHODS["turn"](), class_balance=class_balance).probe_epoch(run)  # type: ignore[attr-defined, type-var]
    p = run.logits.double().softmax(1)[torch.arange(len(ROWS)), run.y[ROWS]]
    weight = alike(torch.ones(N), run.y)[ROWS] if class_balance else torch.ones(len(ROWS))
    assert abs(float(run.value) - float((weight * (1 - p**0.7) / 0.7).mean())) < 1e-5


def test_a_warning_is_said_where_classes_differ_much_in_size_and_count_alike() -> None:
    run, method = Asked(), METHODS["turn"]()
    method.probe_epoch(run)  # type: ignore[attr-defined]
    assert isinstance(run.value, Tensor), "classes of 3, 3 and 2 are near enough"
    run.y = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    method.probe_epoch(run)  # type: ignore[attr-defined]
    assert isinstance(run.value, LossOutput)
    assert run.value.warning is not None
    for words in ("7 given labels", "smallest 1", "method.class_balance=0"):
        assert words in run.value.warning
    replace(method, class_balance=0.0).probe_epoch(run)  # type: ignore[attr-defined, type-var]
    assert isinstance(run.value, Tensor)
    run.epoch = 1
    method.probe_epoch(run)  # type: ignore[attr-defined]
    assert isinstance(run.value, Tensor), "it is said once"


def test_the_paper_preset_and_the_mixture_weigh_no_class() -> None:
    run, paper = Asked(), METHODS["turn"].presets["paper"]("vit")
    for method in (paper, replace(METHODS["turn"](), select="mixture")):  # type: ignore[type-var]
        assert torch.equal(method.weight(run, torch.ones(N)), torch.ones(N))  # type: ignore[attr-defined]


def test_the_papers_preset_has_no_pull() -> None:
    run, paper = Asked(), METHODS["turn"].presets["paper"]("vit")
    run.score = lambda fn, net: torch.rand(N, generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    paper.tune_epoch(run)  # type: ignore[attr-defined]
    assert TARGET not in run.ledger
    p = run.logits.double().softmax(1)[torch.arange(len(ROWS)), run.y[ROWS]]
    assert abs(float(run.value) + float(p.log().mean())) < 1e-5
