"""TURN: its selection and loss, its preset `paper`, and what the defaults change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from cleantune.methods.ledger import Ledger
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Output, Selection
from cleantune.methods.turn import TURN

N, C = 60, 3


class FakeRun:
    """A run whose logits are fixed; two labels in ten contradict them."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        true = torch.arange(N) % C
        self.is_wrong = torch.arange(N) % 10 < 2
        self.y = torch.where(self.is_wrong, (true + 1) % C, true)
        self.logits = 4 * torch.nn.functional.one_hot(true, C) + 0.3 * torch.randn(N, C, generator=rng)
        self.classes, self.epoch, self.rng, self.ledger = C, 0, rng, Ledger(N)
        self.net: Any = lambda x: Output(self.logits, x, x)
        self.selection: Selection | None = None
        self.passes = 0.0
        self.value = torch.zeros(())

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        return fn(self.y, self.logits)

    def learn(
        self, net: nn.Module, loss: Callable[..., Tensor], selection: Selection | None = None, passes: float = 1.0
    ) -> None:
        self.selection, self.passes = selection, passes
        self.value = loss(net, Batch(torch.arange(N), self.y, torch.ones(N), (torch.zeros(N, 2),)))


def test_the_mixture_selects_exactly_the_consistent_labels() -> None:
    run: Any = FakeRun()
    TURN(balance="all").tune_epoch(run)
    assert torch.equal(run.selection.mask, ~run.is_wrong)
    assert ((run.ledger["p_clean"] > 0.3) == ~run.is_wrong).all()


def test_strict_balance_selects_equally_many_of_every_class() -> None:
    run: Any = FakeRun()
    run.y[:6] = 0
    TURN().tune_epoch(run)
    assert len(set(torch.bincount(run.y[run.selection.mask]).tolist())) == 1
    assert torch.equal(run.selection.weight, run.selection.mask.float())


def test_probe_minimizes_gce_and_tuning_cross_entropy() -> None:
    run: Any = FakeRun()
    p = run.logits.double().softmax(1)[torch.arange(N), run.y]
    TURN().probe_epoch(run)
    assert run.selection is None
    torch.testing.assert_close(run.value.double(), ((1 - p**0.7) / 0.7).mean(), rtol=1e-5, atol=1e-5)
    TURN().tune_epoch(run)
    torch.testing.assert_close(run.value.double(), -p.log().mean(), rtol=1e-5, atol=1e-5)


def test_posteriors_are_averaged_over_rounds_on_request() -> None:
    run: Any = FakeRun()
    method = TURN(average_posterior=True)
    method.select(run)
    first = run.ledger["p_clean"].clone()
    run.logits = run.logits / 4
    method.select(run)
    both = run.ledger["p_clean"].clone()
    other: Any = FakeRun()
    other.logits = run.logits
    TURN().select(other)
    torch.testing.assert_close(both, (first + other.ledger["p_clean"]) / 2)


def test_the_preset_has_the_settings_of_the_paper() -> None:
    paper: Any = TURN.presets["paper"]("vit")
    assert (paper.q, paper.tau, paper.balance, paper.em_iterations, paper.em_tolerance) == (
        0.7,
        0.3,
        "strict",
        10,
        0.01,
    )
    assert (paper.probe, paper.tune) == (paper_probe("vit"), paper_tune("vit", epochs=4))
    assert (paper.enforce_monotone, paper.average_posterior, paper.normalize) == (False, False, "none")
    assert [TURN.presets["paper"](b).epochs_per_round for b in ("vit", "vit_msn")] == [1, 5]  # type: ignore[attr-defined]


def test_defaults_differ_from_the_paper_as_documented() -> None:
    paper, default = TURN.presets["paper"]("vit"), TURN()
    changed = {f.name for f in fields(TURN) if getattr(paper, f.name) != getattr(default, f.name)}
    assert changed == {"em_iterations", "em_tolerance", "enforce_monotone", "probe", "tune"}
    assert default.tune.epochs == paper.tune.epochs  # type: ignore[attr-defined]


def test_the_head_of_the_probe_is_fine_tuned() -> None:
    probe, tune = TURN().phases()
    assert (probe.scope, tune.scope, tune.head) == ("head", "all", "same")
    assert TURN(scope="head").phases()[1].scope == "head"


def test_epochs_per_round_are_passes_over_one_selection() -> None:
    run: Any = FakeRun()
    TURN(epochs_per_round=4).tune_epoch(run)
    assert run.passes == 4
