"""Selection of a run's model, and its reason."""

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
    new_head,
    quick,
)

from cleantune.config.run import RunConfig
from cleantune.pipeline.model_selection import SelectedModel, select_model
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer


def run_turn(problem: Problem, model_selection: str = "last") -> tuple[Trainer, list[Any]]:
    """Train TURN in scope `all` to its last epoch."""
    run = loop_on(problem, "all")
    todo = phases(quick("robust", "all"), BACKBONE_RATE)
    return run, list(train(todo, run, Evaluator(problem.data()), model_selection=model_selection))  # type: ignore[arg-type]


def select(run: Trainer, problem: Problem, **spec: Any) -> SelectedModel:
    """Return the selected model of a run."""
    features = {split: data.features.features for split, data in loop_on(problem, "all").splits.items()}  # type: ignore[attr-defined]

    def fresh() -> list[Model]:
        return [Model(backbone(), new_head(features["train"], 0))]

    return select_model(run, SimpleNamespace(features=features), fresh, RunConfig(**spec), "probe")  # type: ignore[arg-type]


def wreck(run: Trainer) -> None:
    """Make the fine-tuned model predict one class."""
    with torch.no_grad():
        run.models[0].head.linear.weight.zero_()  # type: ignore[union-attr, operator]
        run.models[0].head.linear.bias.copy_(torch.tensor([5.0, 0, 0, 0]))  # type: ignore[union-attr, operator]
    run.predictor.weights_changed(backbone=False)


def accuracy(run: Trainer, problem: Problem) -> float:
    return float((run.probabilities("test").argmax(1) == problem.y["test"]).float().mean())


def test_harmed_model_gives_way_to_the_first_probe() -> None:
    problem = blobs(0.3, spread=0.4)
    run, rows = run_turn(problem)
    wreck(run)
    assert accuracy(run, problem) < 0.3
    selected = select(run, problem)
    assert (selected.phase, selected.is_first_probe) == ("probe", True)
    assert "fine-tuning did harm, so the first probe is selected" in selected.reason
    assert "standard errors" in selected.reason
    first = [row for row in rows if row["round"] == 0][-1]
    assert abs(accuracy(run, problem) - first["accuracy_test"]) < 1e-6


def test_selected_probe_has_the_pretrained_backbone() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    wreck(run)
    select(run, problem)
    before, after = backbone().state_dict(), run.models[0].backbone.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    net = run.models[0].eval()
    with torch.no_grad():
        fresh = net(problem.x["test"]).logits.softmax(1)
    torch.testing.assert_close(run.probabilities("test"), fresh, atol=1e-5, rtol=0)


def test_better_model_is_selected_unchanged() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    before = {name: value.clone() for name, value in run.models[0].state_dict().items()}
    selected = select(run, problem)
    assert not selected.is_first_probe
    assert selected.reason.startswith("the model of the last epoch: on the noisy validation split it agrees with")
    assert all(torch.equal(value, before[name]) for name, value in run.models[0].state_dict().items())


@pytest.mark.parametrize(("more", "harmed"), [(0, False), (1, False), (9, True)])
def test_harm_needs_more_than_one_standard_error(more: int, harmed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    probed = (run.probabilities("validation").argmax(1) == problem.y["validation"]).numpy().copy()
    probed[np.flatnonzero(~probed)[:more]] = (
        True  # it agrees wherever the tuned model does, and on more
    )
    monkeypatch.setattr("cleantune.pipeline.model_selection.candidate_agrees", lambda *_: probed)
    assert select(run, problem).is_first_probe == harmed


def test_fallback_to_probe_can_be_turned_off() -> None:
    problem = blobs(0.3, spread=0.4)
    run, _ = run_turn(problem)
    wreck(run)
    selected = select(run, problem, fallback_to_probe=False)
    assert selected == SelectedModel("probe", "the model of the last epoch")
    assert accuracy(run, problem) < 0.3


def test_best_epoch_on_noisy_validation_is_selected() -> None:
    problem = blobs(0.3, spread=0.4)
    run, rows = run_turn(problem, model_selection="noisy-val")
    wreck(run)
    selected = select(run, problem, model_selection="noisy-val")
    assert selected.phase == "best"
    best = max(rows, key=lambda row: row["accuracy_validation"])
    agreed = float((run.probabilities("validation").argmax(1) == problem.y["validation"]).float().mean())
    assert abs(agreed - best["accuracy_validation"]) < 1e-6
    assert abs(accuracy(run, problem) - best["accuracy_test"]) < 1e-6


def test_run_without_fine_tuning_selects_its_last_epoch() -> None:
    problem = blobs(0.3)
    run = loop_on(problem, "all")
    list(train(phases(quick("gce", "head"), 0.0), run, Evaluator(problem.data())))
    assert select(run, problem) == SelectedModel("probe", "the model of the last epoch")
