"""One cell of a matrix: a run without report, model and label list, in a folder that a killed run re-enters."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from cleantune.backbones import Backbone
from cleantune.config.run import Config
from cleantune.errors import UserError
from cleantune.methods.protocol import Method, Phase, Stage
from cleantune.pipeline import artifacts
from cleantune.pipeline.finished_run import Baseline
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.record import write_config
from cleantune.pipeline.summary import make_summary
from cleantune.pipeline.train_run import train_and_select
from cleantune.storage.files import read_json, write_json, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare.matrix import Cell, Entry, Matrix
from cleantune.training.epochs import phases
from cleantune.training.optim import backbone_learning_rate_at
from cleantune.utils.console import Console

NO_BASELINE = Baseline({"test": None, "validation": None}, 0.0)
"""A matrix has its linear probes as cells."""
REASON = 400
"""Characters of a reason at the most."""


@dataclass
class Shared:
    """What all cells of a model share before features are made."""

    backbone: Backbone | None
    kind: str | None
    """Type of the backbone, which presets depend on."""
    features_only: bool
    todo: dict[Entry, tuple[Phase, ...]]
    """Phases by entry."""
    config: Config
    """Of any of the cells."""


@dataclass(frozen=True)
class Outcome:
    """What a cell came to."""

    cell: Cell
    folder: str
    """Relative to the matrix."""
    summary: dict[str, Any] | None
    """What its summary.json holds; None where it failed."""
    reason: str | None = None
    rows: list[Any] = field(default_factory=list)
    trials: dict[float, float] = field(default_factory=dict)
    """Accuracy on the noisy validation split by multiple of the learning rate, where rates were tried."""
    noise: dict[str, Any] | None = None

    @classmethod
    def read(cls, cell: Cell, folder: Path, out: Path) -> Outcome:
        """A finished cell from its folder."""
        told = read_json(folder / "summary.json")
        return cls(cell, str(folder.relative_to(out)), told, rows=list(RunDir(folder, resume=True).read_metrics()))

    def with_trials(self, judged: Mapping[float, float]) -> Outcome:
        """The same, knowing what was tried before it."""
        return replace(self, trials=dict(judged))

    @property
    def validation(self) -> float | None:
        """Accuracy on the noisy validation split of the model that the cell ends with."""
        return None if self.summary is None else self.summary["accuracy"]["validation"]

    @property
    def words(self) -> str:
        """For the progress."""
        if self.summary is None:
            return f"failed: {self.reason}"
        accuracy, cost = self.summary["accuracy"], self.summary["cost"]
        return (
            f"test {accuracy['test']:.1%}, {cost['forward_passes']:,} forward_passes, {cost['seconds']['total']:.0f} s"
        )


def run_cell(
    matrix: Matrix, cell: Cell, shared: Shared, material: RunInputs, noise: dict[str, Any] | None, path: Path, out: Path
) -> Outcome:
    """A cell from where it stands to its end, or to its failure.

    The run is that of `fit` on the same settings, whose config.toml lies in the folder; report, model and list of
    labels are left out, and the checkpoint goes once the cell is done.
    """
    place = str(path.relative_to(out))
    try:
        folder = RunDir(path, resume=True)
        (path / "failed.json").unlink(missing_ok=True)
        (path / "traceback.txt").unlink(missing_ok=True)
        config = at_rate(matrix.config(cell, shared.kind, shared.features_only), cell.rate, material.learning_rate)
        told = trained_summary(config, material, folder, noise)
        write_json(path / "summary.json", told)
        shutil.rmtree(path / "checkpoint", ignore_errors=True)
        return Outcome.read(cell, path, out)
    except Exception as error:  # whatever it is, the other cells run
        reason = sentence(error)
        write_json(path / "failed.json", {"reason": reason, "kind": type(error).__name__})
        if not isinstance(error, UserError):
            write_text(path / "traceback.txt", traceback.format_exc())
        return Outcome(cell, place, None, reason, noise=noise)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def trained_summary(
    config: Config, material: RunInputs, folder: RunDir, noise: dict[str, Any] | None
) -> dict[str, Any]:
    """Train, or go on, and measure; nothing of the run outlives this."""
    todo = phases(config.method, material.learning_rate)
    write_config(folder, config, todo, material)
    ended = train_and_select(
        config, material, todo, folder, Console(quiet=True), noise, time.perf_counter(), NO_BASELINE
    )
    looks = artifacts.predict_splits(ended)
    told = make_summary(ended, artifacts.score_labels(ended, looks), looks)
    stage = own_stage(todo, config.method)
    told["chosen"] = config.run.model_selection
    told["learning_rate"] = stage.learning_rate
    told["backbone_learning_rate"] = stage.backbone_learning_rate if config.method.scope == "all" else None
    return told


def own_stage(todo: tuple[Phase, ...], method: Method) -> Stage:
    """The stage in which the method learns what its scope says."""
    return next((phase.stage for phase in todo if phase.scope == method.scope), todo[-1].stage)


def at_rate(config: Config, times: float, recommended: float) -> Config:
    """The configuration with the learning rates of its scope's stages multiplied.

    Args:
        config: Of a cell.
        times: The multiple; 1 changes nothing.
        recommended: The backbone's rate where a stage names none, for batches of `schedule.REFERENCE_BATCH_SIZE`.
    """
    if times == 1:
        return config
    method: Any = config.method
    mine = {phase.name for phase in method.phases() if phase.scope == method.scope}
    changed = {}
    for f in fields(method):
        stage = getattr(method, f.name)
        if isinstance(stage, Stage) and f.name in mine:
            rates = {"learning_rate": stage.learning_rate * times}
            if method.scope == "all":
                rates["backbone_learning_rate"] = backbone_learning_rate_at(stage, recommended) * times
            changed[f.name] = replace(stage, **rates)  # type: ignore[arg-type]
    return replace(config, method=replace(method, **changed))


def sentence(error: BaseException) -> str:
    """An error in one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= REASON else text[: REASON - 1].rstrip() + "…"
