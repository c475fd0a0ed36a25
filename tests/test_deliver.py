"""Which model is handed over, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_contract import (  # noqa: F401 - a fixture
    BACKBONE_RATE,
    Problem,
    _one_thread,
    backbone,
    blobs,
    loop_on,
    quick,
)

from cleantune.config.run import RunConfig
from cleantune.pipeline.model_selection import SelectedModel, deliver
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.models import Net
from cleantune.training.trainer import Trainer


def run_turn(problem: Problem, model_selection: str = "last") -> tuple[Trainer, list[Any]]:
    """TURN in scope all, to its last epoch."""
    run = loop_on(problem, "all")
    todo = phases(quick("turn", "all"), BACKBONE_RATE)
    return run, list(train(todo, run, Evaluator(problem.data()), model_selection=model_selection))  # type: ignore[arg-type]


def handed(run: Trainer, problem: Problem, **spec: Any) -> SelectedModel:
    """What is delivered of a run."""
    features = {split: data.features.features for split, data in loop_on(problem, "all").splits.items()}  # type: ignore[attr-defined]

    def fresh() -> list[Net]:
        return [Net(backbone(), run.new_head(features["train"], 0))]

    return deliver(run, SimpleNamespace(features=features), fresh, RunConfig(**spec), "probe")  # type: ignore[arg-type]


def wreck(run: Trainer) -> None:
    """Make the tuned net predict one class."""
    with torch.no_grad():
        run.whole[0].head.linear.weight.zero_()  # type: ignore[union-attr, operator]
        run.whole[0].head.linear.bias.copy_(torch.tensor([5.0, 0, 0, 0]))  # type: ignore[union-attr, operator]


def accuracy(run: Trainer, problem: Problem) -> float:
    return float((run.probabilities("test").argmax(1) == problem.y["test"]).float().mean())


def test_a_wrecked_model_gives_way_to_the_probe_and_that_is_said() -> None:
    problem = blobs(0.3, spread=0.4)
    run, rows = run_turn(problem)
    wreck(run)
    assert accuracy(run, problem) < 0.3
    said = handed(run, problem)
    assert (said.phase, said.early) == ("probe", True)
    assert "fine-tuning did harm, so the first probe is delivered" in said.why
    assert "standard errors" in said.why
    first = [row for row in rows if row["round"] == 0][-1]
    assert abs(accuracy(run, problem) - first["accuracy_test"]) < 1e-6


def test_the_probe_that_is_delivered_stands_on_the_backbone_as_pre_trained() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    wreck(run)
    handed(run, problem)
    before, after = backbone().state_dict(), run.whole[0].backbone.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    net = run.whole[0].eval()
    with torch.no_grad():
        fresh = net(problem.x["test"]).logits.softmax(1)
    torch.testing.assert_close(run.probabilities("test"), fresh, atol=1e-5, rtol=0)


def test_a_better_model_is_delivered_as_it_is() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    before = {name: value.clone() for name, value in run.whole[0].state_dict().items()}
    said = handed(run, problem)
    assert not said.early
    assert said.why.startswith("the model of the last epoch: on the noisy validation split it agrees with")
    assert all(torch.equal(value, before[name]) for name, value in run.whole[0].state_dict().items())


@pytest.mark.parametrize(("more", "harmed"), [(0, False), (1, False), (9, True)])
def test_only_a_loss_beyond_chance_is_harm(more: int, harmed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    probed = (run.probabilities("validation").argmax(1) == problem.y["validation"]).numpy().copy()
    probed[np.flatnonzero(~probed)[:more]] = True  # the probe is right wherever the tuned net is, and on a few more
    monkeypatch.setattr("cleantune.pipeline.model_selection._agrees", lambda *_: probed)
    assert handed(run, problem).early == harmed


def test_do_no_harm_can_be_turned_off() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    wreck(run)
    said = handed(run, problem, fallback_to_probe=False)
    assert said == SelectedModel("probe", "the model of the last epoch")
    assert accuracy(run, problem) < 0.3


def test_the_best_epoch_on_noisy_validation_is_delivered_where_asked_for() -> None:
    problem = blobs(0.3, spread=0.4)
    run, rows = run_turn(problem, model_selection="noisy-val")
    wreck(run)
    said = handed(run, problem, model_selection="noisy-val")
    assert said.phase == "best"
    best = max(rows, key=lambda row: row["accuracy_validation"])
    agreed = float((run.probabilities("validation").argmax(1) == problem.y["validation"]).float().mean())
    assert abs(agreed - best["accuracy_validation"]) < 1e-6
    assert abs(accuracy(run, problem) - best["accuracy_test"]) < 1e-6


def test_a_run_without_fine_tuning_delivers_its_last_epoch() -> None:
    problem = blobs(0.3)
    run = loop_on(problem, "all")
    list(train(phases(quick("gce", "head"), 0.0), run, Evaluator(problem.data())))
    assert handed(run, problem) == SelectedModel("probe", "the model of the last epoch")
