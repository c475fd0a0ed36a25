"""Tests of the cost model against the cost of runs and the formulas of the papers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import color_table
from test_contract import Vectors
from tiny import save_tiny
from torch import Tensor, nn

import cleantune
from cleantune.config.run import configure
from cleantune.methods import METHODS
from cleantune.methods.protocol import Phase
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.cost_model import Workload, estimate_cost
from cleantune.pipeline.dry_run import DryRun
from cleantune.pipeline.throughput import FIRST_PASS_SAMPLES, Throughput, measure_throughput
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

EXACT = ("ce", "gce", "elr", "coteaching", "robust")
"""Methods whose cost does not depend on the selection."""
SIZES = Workload(9000, 1000, 2000, 10)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: on small tensors a second one costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


METHOD = {"probe": {"epochs": 3, "min_steps": 0, "batch_size": 16}, "tune": {"epochs": 2, "batch_size": 16}}
"""Settings of every method."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Run every method in both scopes on a few images, and return the table."""
    folder = tmp_path_factory.mktemp("cost")
    save_tiny("resnet", folder / "model")
    settings = {f"method.{stage}.{name}": value for stage, fields in METHOD.items() for name, value in fields.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEANTUNE_CACHE", str(folder / "cache"))
        return cleantune.compare(
            color_table(folder, 200), folder / "model", out=folder / "out", methods=list(METHODS),
            scopes=["head", "all"], seeds=1, true_label="true", test_fraction=0.2, settings=settings, quiet=True,
            precision="float32",
        ).table  # fmt: skip


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_estimated_cost_is_near_the_cost_of_a_run(method: str, scope: str, runs: pd.DataFrame) -> None:
    rows = runs[(runs["method"] == method) & (runs["scope"] == scope)]
    if rows.empty:
        pytest.skip("one cell whatever the scopes")
    row = rows.iloc[0]
    assert row["status"] == "done", row["reason"]
    config = configure({"data": {"data": "images"}, "method": {"name": method, "scope": scope} | METHOD}, "resnet")
    todo = phases(config.method, 1e-3)
    views = len(views_to_cache(todo, config.run.cached_augmentations))
    found = estimate_cost(todo, Workload(144, 16, 40, 3), row["noise_true_rate"], views)
    if method in EXACT or scope == "head":
        assert found.forward_passes == pytest.approx(row["forward_passes"], rel=0.02)
    else:  # the selection of a tiny network on 144 samples is hardly predictable
        assert row["forward_passes"] / 2 < found.forward_passes < 2 * row["forward_passes"]
    if method in EXACT:
        assert found.training_samples == pytest.approx(row["training_samples"], rel=0.02)
        assert found.optimizer_steps == pytest.approx(row["optimizer_steps"], rel=0.05)


def slow(phase: Phase) -> Phase:
    """Return the phase at a learning rate that changes nothing, so that the selection stays."""
    stage = replace(phase.stage, learning_rate=1e-12, backbone_learning_rate=1e-12, min_steps=0)
    return replace(phase, stage=replace(stage, epochs=min(stage.epochs, 7), batch_size=32))


class PassThrough(nn.Module):
    """A backbone that returns its input, with one weight so that it can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one


class SyntheticTrainer(Trainer):
    """A trainer with the label errors of a dry run."""

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Tensor:
        p = torch.as_tensor(self.predictor.features(["train"], self.models[0])["train"]).softmax(1)
        return 1 - p.gather(1, self.y[:, None])[:, 0]


def score_head(features: Any, k: int) -> LinearHead:
    """Return a head whose scores are the features."""
    classes = features.shape[1]
    head = LinearHead(classes, classes, init="zeros")
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(classes))
    return head


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_dry_run_costs_as_much_as_training(method: str, scope: str) -> None:
    todo = [slow(p) for p in phases(METHODS[method](scope=scope), 1e-3)]  # type: ignore[call-arg]
    workload = Workload(397, 40, 40, 5)
    problem = DryRun(workload.classes, workload.train, 1.0, 0.4, 1)
    features = FeatureBatches(problem.scores)
    samples = SampleBatches(Vectors(problem.scores))  # type: ignore[arg-type]
    models = [Model(PassThrough(), score_head(problem.scores, k)) for k in range(todo[0].num_nets)]  # type: ignore[arg-type]
    trainer = SyntheticTrainer(models, {"train": SplitData(problem.y, features, samples)}, 5, 0, score_head)
    list(train([replace(phase, mlp=None) for phase in todo], trainer, lambda trainer: {}))
    found = estimate_cost(todo, workload, 0.4)
    assert found.num_evaluated == pytest.approx(sum(model.num_evaluated for model in models), rel=0.03)
    assert found.num_trained == pytest.approx(sum(model.num_trained for model in models), rel=0.03)
    assert found.training_samples == trainer.cost.training_samples
    assert found.optimizer_steps == trainer.cost.optimizer_steps


@pytest.mark.parametrize(("scope", "forward_passes", "uncached"), [("head", 1, 20), ("all", 15, 15)])
def test_single_model_costs_three_passes_per_sample_and_epoch(scope: str, forward_passes: int, uncached: int) -> None:
    for name in ("ce", "gce"):
        todo = phases(METHODS[name](scope=scope), 1e-3)  # type: ignore[call-arg]
        found = estimate_cost(todo, SIZES, 0.5)
        assert found.forward_passes == forward_passes * SIZES.train
        assert found.forward_passes_uncached == uncached * SIZES.train


@pytest.mark.parametrize("wrong", [0.2, 0.6])
def test_dividemix_costs_what_its_formula_states(wrong: float) -> None:
    """The formula is (2 + 36 rho) N an epoch after a warm-up of 6 N, where rho is the share of clean samples."""
    method = METHODS["dividemix"](scope="all")  # type: ignore[call-arg]
    todo = phases(method, 1e-3)
    found = estimate_cost(todo, SIZES, wrong)
    epochs, warm = todo[0].stage.epochs, method.warm_up  # type: ignore[attr-defined]
    rho = (found.training_samples / SIZES.train - 2 * warm) / (2 * (epochs - warm))
    assert rho == pytest.approx(1 - wrong, abs=0.12)
    formula = 6 * warm + (epochs - warm) * (2 + 36 * rho)
    assert found.forward_passes / SIZES.train == pytest.approx(formula, rel=0.01)


def test_dry_run_is_deterministic_and_draws_nothing_global() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    todo = phases(METHODS["robust"](), 1e-3)
    first = estimate_cost(todo, SIZES, 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert estimate_cost(todo, SIZES, 0.5) == first


def test_dry_run_of_few_samples_scales_to_many() -> None:
    todo = phases(METHODS["robust"](), 1e-3)
    few, many = estimate_cost(todo, SIZES, 0.5, rows=600), estimate_cost(todo, SIZES, 0.5, rows=9000)
    assert few.forward_passes == pytest.approx(many.forward_passes, rel=0.01)


def test_cached_views_cost_one_pass_each() -> None:
    todo = phases(METHODS["ce"](), 1e-3)
    assert estimate_cost(todo, SIZES, views=4).forward_passes == 5 * SIZES.train


def test_seconds_are_samples_over_throughput() -> None:
    found = estimate_cost(phases(METHODS["ce"](scope="all"), 1e-3), SIZES)  # type: ignore[call-arg]
    looks = found.num_evaluated + found.evaluation_forward_passes
    assert Throughput(100, 10, 1000).seconds(found) == pytest.approx(
        looks / 100 + 5 * SIZES.train / 10 + found.num_cached / 1000
    )


def test_measure_throughput_of_heads_is_finite() -> None:
    speed = measure_throughput(None, None, 64, 10, budget=0.3)
    assert speed.cached > 100
    assert np.isfinite(speed.inference)


def test_measure_throughput_evaluates_and_trains_the_backbone(tmp_path: Path) -> None:
    from cleantune.backbones import open_backbone
    from cleantune.config.data import DataConfig
    from cleantune.data import load
    from cleantune.data.model_inputs import make_model_inputs

    save_tiny("resnet", tmp_path / "model")
    backbone = open_backbone(tmp_path / "model")
    data = load(DataConfig(color_table(tmp_path, 40), true_label="true"))
    samples = make_model_inputs(data.rows["train"].samples, backbone.preprocess, tmp_path)  # type: ignore[arg-type]
    net = Model(backbone, LinearHead(backbone.width, 3, init="zeros"))
    before = net.head.linear.weight.clone()
    speed = measure_throughput(net, samples, backbone.width, 3, 0.2)
    assert min(speed.inference, speed.training) > 0
    assert min(net.num_evaluated, net.num_trained) >= 2 * min(FIRST_PASS_SAMPLES, 40)
    assert not torch.equal(net.head.linear.weight, before)
