"""One trial of a search: a run of `fit` without test, report and model, in a folder that a killed search re-enters."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cleantune.config.run import configure
from cleantune.config.schema import merge, nest
from cleantune.errors import UserError
from cleantune.functional import losses, metrics
from cleantune.methods.protocol import EpochMetrics
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.record import write_config
from cleantune.pipeline.train_run import train_and_select
from cleantune.storage.files import read_json, write_json, write_table, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare.cells import NO_BASELINE, sentence
from cleantune.studies.search.space import Dimension
from cleantune.training.epochs import phases
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = {
    "noisy-val": "accuracy of the delivered model on the validation split, by the given labels",
    "noisy-val-averaged": "the same, averaged over the later half of the last phase's epochs",
    "noisy-val-gce": "minus the GCE (q = 0.7) of the given labels of the validation split",
}
"""What a search can maximize; nothing of it sees a true label or the test split."""
Q = 0.7


@dataclass(frozen=True)
class Study:
    """What all trials share."""

    table: dict[str, Any]
    """The settings of the default trial, as `fit` takes them."""
    space: tuple[Dimension, ...]
    points: tuple[dict[str, Any], ...]
    """What each trial changes, by dimension key; the first one changes nothing."""
    objective: str
    kind: str | None
    """Type of the backbone."""
    features_only: bool
    noise: dict[str, Any] | None
    out: Path

    def table_of(self, number: int) -> dict[str, Any]:
        """The settings of a trial."""
        table, also = self.table, {d.key: d.also for d in self.space}
        for key, value in self.points[number].items():
            for path in (key, *also[key]):
                table = merge(table, nest(path.split("."), value))
        return table

    def folder(self, number: int) -> Path:
        """Where a trial lies."""
        return self.out / "trials" / f"{number:04d}"


class ReportingConsole(Console):
    """Says nothing, and tells of each epoch's row."""

    def __init__(self, told: Callable[[EpochMetrics], None]) -> None:
        super().__init__(quiet=True)
        self._row_told = told

    def row(self, row: Mapping[str, Any]) -> None:
        """One epoch."""
        self._row_told(EpochMetrics(row))


def run_trial(study: Study, number: int, material: RunInputs, told: Callable[[EpochMetrics], None]) -> None:
    """A trial from where it stands to its end, or to its failure, both of which its folder then says."""
    path = study.folder(number)
    start = time.perf_counter()
    try:
        folder = RunDir(path, resume=True)
        (path / "failed.json").unlink(missing_ok=True)
        config = configure(study.table_of(number), study.kind, study.features_only)
        todo = phases(config.method, material.learning_rate)
        write_config(folder, config, todo, material)
        ended = train_and_select(
            config, material, todo, folder, ReportingConsole(told), study.noise, start, NO_BASELINE
        )
        p, y = ended.trainer.probabilities("validation"), ended.trainer.splits["validation"].y
        values = per_sample_score(p, y, study.objective)
        write_table(path / "validation.npy", lambda beside: save(beside, values))
        told_of = {
            "objective": objective_of(values, ended.metrics, study.objective),
            "standard_error": float(values.std(ddof=1)) / len(values) ** 0.5,
            "accuracy_validation": metrics.accuracy(p.argmax(1).numpy(), y.numpy()),
            "gce_validation": -float(per_sample_score(p, y, "noisy-val-gce").mean()),
            "selected_model": ended.selected_model.phase,
            "forward_passes": ended.trainer.cost.forward_passes,
            "seconds": round(ended.trainer.elapsed_seconds, 3),
        }
        write_json(path / "trial.json", told_of)
        shutil.rmtree(path / "checkpoint", ignore_errors=True)
    except Exception as error:  # whatever it is, the other trials run
        write_json(path / "failed.json", {"reason": sentence(error)})
        if not isinstance(error, UserError):
            write_text(path / "traceback.txt", traceback.format_exc())


def save(path: Path, values: np.ndarray) -> None:
    """An array in a file whose name is not changed."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def per_sample_score(p: Tensor, y: Tensor, objective: str) -> np.ndarray:
    """What a model is worth on each validation sample [n], more is better."""
    if objective == "noisy-val-gce":
        return -losses.gce(p.clamp(min=1e-30).log(), y, Q).double().numpy()
    return (p.argmax(1) == y).double().numpy()


def objective_of(values: np.ndarray, rows: Sequence[Mapping[str, Any]], objective: str) -> float:
    """The number that is maximized."""
    if objective != "noisy-val-averaged":
        return float(values.mean())
    last = [row["accuracy_validation"] for row in rows if row["round"] == rows[-1]["round"]]
    return float(np.mean(last[len(last) // 2 :]))


def without_test(material: RunInputs) -> RunInputs:
    """The material of a search: no trial sees the test split."""
    rows = {name: rows for name, rows in material.data.rows.items() if name in ("train", "validation")}
    return replace(material, data=replace(material.data, rows=rows))


def row_of(study: Study, number: int) -> dict[str, Any]:
    """A row of trials.parquet, from the trial's folder."""
    path = study.folder(number)
    done, failed = path / "trial.json", path / "failed.json"
    out: dict[str, Any] = {"trial": number, "status": "pending", "reason": None, "stopped": False}
    if done.is_file():
        out |= {"status": "done"} | read_json(done)
    elif failed.is_file():
        out |= {"status": "failed"} | read_json(failed)
    elif (path / "stopped.json").is_file():
        out |= {"status": "done", "stopped": True} | read_json(path / "stopped.json")
    rows = RunDir(path, resume=True).read_metrics() if path.is_dir() else []
    out["epochs"] = len(rows)
    for dimension in study.space:
        out[dimension.name] = study.points[number].get(dimension.key, setting(study, dimension.key))
    return out | {"folder": f"trials/{path.name}"}


def setting(study: Study, key: str) -> Any:
    """The value of a field in the default trial."""
    value: Any = configure(study.table, study.kind, study.features_only)
    for name in key.split("."):
        value = getattr(value, name)
    return value


def frame_of(study: Study, tied: Sequence[int] = (), chosen: int | None = None) -> pd.DataFrame:
    """One row a trial; docs/search.md explains the columns."""
    import pandas as pd

    rows = [row_of(study, number) for number in range(len(study.points))]
    names = (
        "objective", "standard_error", "accuracy_validation", "gce_validation", "selected_model", "forward_passes",
        "seconds",
    )  # fmt: skip
    frame = pd.DataFrame(
        [{"trial": row["trial"], "status": row["status"], **dict.fromkeys(names), **row} for row in rows]
    )
    for name in ("objective", "standard_error", "accuracy_validation", "gce_validation", "seconds"):
        frame[name] = frame[name].astype("float64")
    frame["forward_passes"] = frame["forward_passes"].astype("Int64")
    for name in ("status", "reason", "selected_model", "folder"):
        frame[name] = frame[name].astype("string")
    frame["tied"] = frame["trial"].isin(list(tied))
    frame["chosen"] = frame["trial"] == (-1 if chosen is None else chosen)
    return frame


def values_of(study: Study, number: int) -> np.ndarray | None:
    """What a finished trial is worth on each validation sample, or None."""
    path = study.folder(number) / "validation.npy"
    return np.load(path, allow_pickle=False) if path.is_file() else None


def stopped(study: Study, number: int) -> None:
    """Note that the scheduler has ended a trial, where it has not ended by itself."""
    if any((study.folder(number) / f"{name}.json").is_file() for name in ("trial", "failed")):
        return
    rows = RunDir(study.folder(number), resume=True).read_metrics()
    if rows:
        last = rows[-1]
        said = {"objective": None, "accuracy_validation": last["accuracy_validation"], "seconds": last["seconds"]}
        write_json(study.folder(number) / "stopped.json", said | {"forward_passes": last["forward_passes"]})


def close_threads() -> None:
    """One thread a trial: several share the processor."""
    torch.set_num_threads(1)
