"""Each method's order of looking and learning, compared with the algorithm box of its paper, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleantune.methods import METHODS
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import ProbeStatistics, Selection


class Recording:
    """A run that trains nothing and writes down what it is asked to do."""

    def __init__(self, N: int = 60, C: int = 3) -> None:
        self.y = torch.arange(N) % C
        self.classes, self.epoch = C, 0
        self.ledger, self.rng = Ledger(N), torch.Generator().manual_seed(0)
        self.progress, self.backbone_changed = 0.0, False
        late = torch.rand(N, generator=self.rng)
        self.probe_statistics = ProbeStatistics(late, late, torch.rand(N, C, generator=self.rng).softmax(1))
        self.nets: list[nn.Module] = [nn.Linear(2, C), nn.Linear(2, C)]
        self.transcript: list[str] = []
        self.selections: list[Selection | None] = []

    @property
    def net(self) -> nn.Module:
        return self.nets[0]

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        self.transcript.append(f"score {self._names(nets)}")
        logits = [
            torch.randn(len(self.y), self.classes, generator=torch.Generator().manual_seed(self.nets.index(net)))
            for net in nets
        ]
        return fn(self.y, *logits)

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Tensor:
        self.transcript.append("p_wrong")
        return torch.rand(len(self.y), generator=torch.Generator().manual_seed(1))

    def learn(self, nets: Any, loss: Callable[..., Tensor], selection: Selection | None = None, **how: int) -> None:
        nets = nets if isinstance(nets, list) else [nets]
        self.transcript.append(f"learn {self._names(nets)} from {'all' if selection is None else 'selection'}")
        self.selections.append(selection)

    def _names(self, nets: Any) -> str:
        return "+".join("AB"[self.nets.index(net)] for net in nets)


def transcript(name: str, **settings: Any) -> list[tuple[str, str, list[str]]]:
    """(phase, scope, what its first epoch does) of a method."""
    run, out = Recording(), []
    for phase in METHODS[name](**settings).phases():
        run.transcript = []
        phase.epoch(run)  # type: ignore[arg-type]
        out.append((phase.name, phase.scope, run.transcript))
    return out


@pytest.mark.parametrize("name", ["ce", "gce", "elr"])
def test_single_losses_learn_from_all_without_scoring(name: str) -> None:
    assert transcript(name, scope="head") == [("probe", "head", ["learn A from all"])]
    assert transcript(name, scope="all") == [("tune", "all", ["learn A from all"])]


def test_turn_probes_on_all_then_scores_before_each_selection() -> None:
    assert transcript("turn") == [
        ("probe", "head", ["learn A from all"]),
        ("tune", "all", ["score A", "learn A from selection"]),
    ]


def test_robust_selects_labels_more_probably_right_than_wrong() -> None:
    run = Recording()
    METHODS["robust"]().phases()[1].epoch(run)  # type: ignore[arg-type]
    (selection,) = run.selections
    assert selection is not None
    assert selection.mask.tolist() == [w < 0.5 for w in run.p_wrong().tolist()]
    assert 0 < int(selection.mask.sum()) < len(selection.mask)


def test_robust_probes_selects_twice_and_probes_again() -> None:
    probe = ("probe", "head", ["learn A from all"])
    tune = ("tune", "all", ["p_wrong", "learn A from selection"])
    assert transcript("robust") == [probe, tune, tune, probe]


def epochs(name: str, count: int, **settings: Any) -> list[list[str]]:
    """What the first epochs of a method with one phase do."""
    run, out = Recording(), []
    (phase,) = METHODS[name](**settings).phases()
    assert phase.num_nets == 2
    for run.epoch in range(count):
        run.transcript = []
        phase.epoch(run)  # type: ignore[arg-type]
        out.append(run.transcript)
    return out


@pytest.mark.parametrize("scope", ["head", "all"])
def test_coteaching_trains_both_networks_at_once(scope: str) -> None:
    assert epochs("coteaching", 2, scope=scope) == [["learn A+B from all"]] * 2


WARM_UP = ["learn A from all", "learn B from all"]


@pytest.mark.parametrize("scope", ["head", "all"])
def test_dividemix_scores_with_both_before_either_learns(scope: str) -> None:
    found = epochs("dividemix", 3, scope=scope, warm_up_head=1, warm_up_all=1)
    assert found == [WARM_UP, *[["score A", "score B", "learn A from selection", "learn B from selection"]] * 2]


@pytest.mark.parametrize("scope", ["head", "all"])
def test_unicon_scores_with_both_before_each_learns(scope: str) -> None:
    found = epochs("unicon", 3, scope=scope, warm_up_head=1, warm_up_all=1)
    assert found == [WARM_UP, *[["score A+B", "learn A from selection", "score A+B", "learn B from selection"]] * 2]


def test_dividemix_trains_each_network_on_its_peers_split() -> None:
    run, method = Recording(), METHODS["dividemix"](warm_up_head=0)
    method.phases()[0].epoch(run)  # type: ignore[arg-type]
    weights = [selection.weight for selection in run.selections if selection is not None]
    assert torch.equal(weights[0], run.ledger["p_clean_1"])
    assert torch.equal(weights[1], run.ledger["p_clean_0"])
    torch.testing.assert_close(run.ledger["p_clean"], (weights[0] + weights[1]) / 2)


def test_elr_with_probe_first_probes_then_tunes() -> None:
    probe, tune = ("probe", "head", ["learn A from all"]), ("tune", "all", ["learn A from all"])
    assert transcript("elr", scope="all", probe_first=True) == [probe, tune]
