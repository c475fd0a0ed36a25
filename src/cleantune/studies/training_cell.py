"""Train one cell of a study as `fit` would, without label list, model files and report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cleantune.backbones import Backbone
from cleantune.config.run import Config
from cleantune.data import Data, corrupt
from cleantune.features.backend import ComputeConfig
from cleantune.methods.protocol import Method, Phase, Stage
from cleantune.pipeline import artifacts
from cleantune.pipeline.finished_run import Baseline, FinishedRun
from cleantune.pipeline.inputs import RunInputs, prepare_inputs
from cleantune.pipeline.label_table import label_table
from cleantune.pipeline.record import write_config
from cleantune.pipeline.resolve import check_model_selection
from cleantune.pipeline.summary import make_summary
from cleantune.pipeline.train_run import train_and_select
from cleantune.storage.files import read_json, write_json
from cleantune.storage.run_dir import RunDir
from cleantune.training.epochs import phases
from cleantune.utils.console import Console

Noise = dict[str, Any] | None
"""Record of injected noise as `data.corrupt` returns it; None if the labels are as given."""
NO_BASELINE = Baseline({"test": None, "validation": None}, 0.0)
"""Placeholder: a study trains its linear probes as cells."""


def shared_inputs(
    config: Config, data: Data, backbone: Backbone | None, console: Console, trains: bool, path: Path
) -> RunInputs:
    """Return the decoded data and features that all cells of one backbone share.

    Args:
        config: Configuration of any of the cells.
        data: Data before noise.
        backbone: Opened backbone; None if the data are features.
        console: Where progress is shown.
        trains: Whether some cell trains the backbone.
        path: JSON file with backend and precisions, so that a resumed study uses the same ones.
    """
    stored = ComputeConfig.from_dict(read_json(path)) if path.is_file() else None
    inputs = prepare_inputs(config, data, backbone, console, compute=stored, trains_backbone=trains)
    write_json(path, inputs.compute.to_dict())
    return inputs


def with_noise(inputs: RunInputs, noise: str, seed: int) -> tuple[RunInputs, Noise]:
    """Return the inputs with noise in their labels, and its record; samples and features are shared."""
    data, record = corrupt(inputs.data, noise, seed)
    return replace(inputs, data=data), dict(record) if "rate" in record else None


def train_cell(
    config: Config, inputs: RunInputs, path: Path, noise: Noise, console: Console | None = None
) -> FinishedRun:
    """Train the configured method in a folder, from its checkpoint if it has one.

    Raises:
        UserError: The data do not allow the model selection, or the method cannot be trained on them.
    """
    check_model_selection(config, inputs.data)
    folder = RunDir(path, resume=True)
    todo = phases(config.method, inputs.learning_rate)
    write_config(folder, config, todo, inputs)
    start = time.perf_counter()
    return train_and_select(config, inputs, todo, folder, console or Console(quiet=True), noise, start, NO_BASELINE)


def summarize(run: FinishedRun) -> dict[str, Any]:
    """Return what `fit` writes as summary.json, with the learning rates of the stage that the scope names."""
    outputs = artifacts.predict_splits(run)
    method = run.config.method
    stage = scope_stage(phases(method, run.inputs.learning_rate), method)
    backbone_rate = stage.backbone_learning_rate if method.scope == "all" else None
    return {
        **make_summary(run, artifacts.score_run(run), label_table(run.inputs.data), outputs),
        "model_selection": run.config.run.model_selection,
        "learning_rate": stage.learning_rate,
        "backbone_learning_rate": backbone_rate,
    }


def scope_stage(todo: tuple[Phase, ...], method: Method) -> Stage:
    """Return the stage in which the method trains what its scope names."""
    return next((phase.stage for phase in todo if phase.scope == method.scope), todo[-1].stage)
