"""Train one trial of a search, and make the table of all trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cleantune.config.run import configure
from cleantune.config.schema import merge, nest
from cleantune.functional import losses, metrics
from cleantune.methods.protocol import EpochMetrics
from cleantune.pipeline.inputs import RunInputs
from cleantune.storage.files import write_json, write_table
from cleantune.storage.run_dir import RunDir
from cleantune.studies.grid import DONE, RECORD, STOPPED, Record, read_record
from cleantune.studies.search.space import Dimension
from cleantune.studies.training_cell import Noise, train_cell
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = {
    "noisy-val": "accuracy of the selected model on the validation split by the given labels",
    "noisy-val-averaged": "the same, averaged over the second half of the last phase's epochs",
    "noisy-val-gce": "negative GCE (q = 0.7) of the given labels of the validation split",
}
"""Quantities that a search can maximize; none of them uses a true label or the test split."""
GCE_Q = 0.7
SCORES = "validation.npy"
"""File with a trial's score of each validation sample."""
PENDING = "pending"
FLOATS = ("objective", "standard_error", "accuracy_validation", "gce_validation", "seconds")
STRINGS = ("status", "reason", "selected_model", "folder")


@dataclass(frozen=True)
class Study:
    """The settings and the search space that all trials share."""

    table: dict[str, Any]
    """Settings of the default trial, as `fit` takes them."""
    space: tuple[Dimension, ...]
    points: tuple[dict[str, Any], ...]
    """Values that each trial changes, by dimension key; the first trial changes nothing."""
    objective: str
    kind: str | None
    """Type of the backbone."""
    features_only: bool
    noise: Noise
    out: Path

    def table_of(self, trial: int) -> dict[str, Any]:
        """Return the settings of a trial."""
        table, linked = self.table, {d.key: d.linked_keys for d in self.space}
        for key, value in self.points[trial].items():
            for path in (key, *linked[key]):
                table = merge(table, nest(path.split("."), value))
        return table

    def path(self, trial: int) -> Path:
        """Return the folder of a trial."""
        return self.out / "trials" / f"{trial:04d}"

    def record(self, trial: int) -> Record:
        """Return the record of a trial; a pending one has the status alone."""
        path = self.path(trial)
        return read_record(path) if (path / RECORD).is_file() else {"status": PENDING, "reason": None}

    def scores(self, trial: int) -> np.ndarray | None:
        """Return a trial's score of each validation sample, or None if it has not finished."""
        path = self.path(trial) / SCORES
        is_done = self.record(trial)["status"] == DONE and path.is_file()
        return np.load(path, allow_pickle=False) if is_done else None

    def default_value(self, key: str) -> Any:
        """Return the value of a field in the default trial."""
        value: Any = configure(self.table, self.kind, self.features_only)
        for name in key.split("."):
            value = getattr(value, name)
        return value


class ReportingConsole(Console):
    """A quiet console that passes the metrics of each epoch on."""

    def __init__(self, report: Callable[[EpochMetrics], None]) -> None:
        super().__init__(quiet=True)
        self._report = report

    def row(self, row: Mapping[str, Any]) -> None:
        """Pass on the metrics of one epoch."""
        self._report(EpochMetrics(row))


def compute_trial(
    study: Study, trial: int, inputs: RunInputs, report: Callable[[EpochMetrics], None], path: Path
) -> dict[str, Any]:
    """Train a trial and return the values of its record.

    Args:
        study: The search.
        trial: Number of the trial.
        inputs: Training and validation data with features.
        report: Function that receives the metrics of each epoch.
        path: Folder of the trial.
    """
    config = configure(study.table_of(trial), study.kind, study.features_only)
    run = train_cell(config, inputs, path, study.noise, ReportingConsole(report))
    p, y = run.trainer.probabilities("validation"), run.trainer.splits["validation"].y
    scores = per_sample_score(p, y, study.objective)
    write_table(path / SCORES, lambda draft: save_array(draft, scores))
    return {
        "objective": objective_value(scores, run.metrics, study.objective),
        "standard_error": float(scores.std(ddof=1)) / len(scores) ** 0.5,
        "accuracy_validation": metrics.accuracy(p.argmax(1).numpy(), y.numpy()),
        "gce_validation": -float(per_sample_score(p, y, "noisy-val-gce").mean()),
        "selected_model": run.selected_model.phase,
        "forward_passes": run.trainer.cost.forward_passes,
        "seconds": round(run.trainer.elapsed_seconds, 3),
    }


def save_array(path: Path, values: np.ndarray) -> None:
    """Save an array under exactly this file name."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def per_sample_score(p: Tensor, y: Tensor, objective: str) -> np.ndarray:
    """Return the score of a model on each validation sample [n]; higher is better."""
    if objective == "noisy-val-gce":
        return -losses.gce(p.clamp(min=1e-30).log(), y, GCE_Q).double().numpy()
    return (p.argmax(1) == y).double().numpy()


def objective_value(scores: np.ndarray, rows: Sequence[Mapping[str, Any]], objective: str) -> float:
    """Return the number that the search maximizes."""
    if objective != "noisy-val-averaged":
        return float(scores.mean())
    last = [row["accuracy_validation"] for row in rows if row["round"] == rows[-1]["round"]]
    return float(np.mean(last[len(last) // 2 :]))


def without_test(inputs: RunInputs) -> RunInputs:
    """Return the inputs with the training and validation splits alone."""
    rows = {name: rows for name, rows in inputs.data.rows.items() if name in ("train", "validation")}
    return replace(inputs, data=replace(inputs.data, rows=rows))


def record_stop(study: Study, trial: int) -> None:
    """Record that the scheduler has stopped a trial, unless it has finished or failed by itself."""
    rows = RunDir(study.path(trial), resume=True).read_metrics()
    if study.record(trial)["status"] == PENDING and rows:
        last = {key: rows[-1][key] for key in ("accuracy_validation", "seconds", "forward_passes")}
        write_json(study.path(trial) / RECORD, {"status": STOPPED, "reason": None, **last})


def trial_row(study: Study, trial: int) -> dict[str, Any]:
    """Return a row of trials.parquet."""
    record, path = study.record(trial), study.path(trial)
    is_stopped = record["status"] == STOPPED
    row = {"trial": trial, **record, "stopped": is_stopped, "status": DONE if is_stopped else record["status"]}
    row["epochs"] = len(RunDir(path, resume=True).read_metrics()) if path.is_dir() else 0
    for dimension in study.space:
        row[dimension.name] = study.points[trial].get(dimension.key, study.default_value(dimension.key))
    return row | {"folder": f"trials/{path.name}"}


def trials_frame(study: Study, tied: Sequence[int] = (), chosen: int | None = None) -> pd.DataFrame:
    """Return one row per trial; docs/search.md explains the columns."""
    import pandas as pd

    names = dict.fromkeys(("trial", "status", *FLOATS, "selected_model", "forward_passes"))
    frame = pd.DataFrame([{**names, **trial_row(study, trial)} for trial in range(len(study.points))])
    kinds = dict.fromkeys(FLOATS, "float64") | dict.fromkeys(STRINGS, "string") | {"forward_passes": "Int64"}
    frame = frame.astype(kinds)
    frame["tied"] = frame["trial"].isin(list(tied))
    frame["chosen"] = frame["trial"] == (-1 if chosen is None else chosen)
    return frame


def write_trials(study: Study, frame: pd.DataFrame) -> None:
    """Write trials.parquet."""
    write_table(study.out / "trials.parquet", lambda path: frame.to_parquet(path, index=False))
