"""Run a transfer study: extract features once per model and task, train a head per cell, and write the tables."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Shaped

from cleantune.estimators import fit_arrays
from cleantune.functional import metrics
from cleantune.functional.spectrum import PRESETS, spectrum
from cleantune.noise import flip_labels, parse_noise
from cleantune.storage.files import write_table, write_text
from cleantune.studies.evaluate import by_domain, refuse_unknown
from cleantune.studies.grid import DONE, FAILED, Grid, Record, read_record
from cleantune.studies.transfer.datasets import EvalSet, TaskData, labels_as_numbers, load_task
from cleantune.studies.transfer.features import BackboneFeatures, TaskFeatures
from cleantune.studies.transfer.figures import figures
from cleantune.studies.transfer.study import Cell, Study
from cleantune.studies.transfer.table import markdown
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd


def run(study: Study, out: str | Path, *, console: Console | None = None, cache: str | None = None) -> pd.DataFrame:
    """Train and evaluate every cell without a record, and write the table, its summary and its figures.

    Args:
        study: The study.
        out: Folder of `cells/` (a folder each), results.parquet, results.md and the figures; it may contain a
            part of the study already.
        console: Where progress is shown.
        cache: Cache of features; None: the usual one.

    Returns:
        One row per cell and domain; a failed cell has one row with its reason.

    Raises:
        UserError: A model or data set is missing or does not fit; finished cells stay on disk.
    """
    folder, console = Path(out), console or Console()
    cells = study.cells()
    grid = Grid(folder / "cells", cells, console)
    console.info(f"{len(cells)} cells, {len(cells) - len(grid.pending)} of them done")
    inputs = CellInputs(cache, console)
    pending = list(grid.pending.values())
    for k, cell in enumerate(pending):
        grid.run(cell, partial(train_cell, cell, *inputs.get(cell)), describe)
        if k + 1 < len(pending) and (pending[k + 1].model, pending[k + 1].seed) != (cell.model, cell.seed):
            publish(study, results_frame(grid), folder)
    frame = results_frame(grid)
    publish(study, frame, folder)
    return frame


class CellInputs:
    """Data and features that neighboring cells share."""

    def __init__(self, cache: str | None, console: Console) -> None:
        """Begin without any data."""
        self.cache, self.console = cache, console
        self._tasks: dict[str, TaskData] = {}
        self._extractor: BackboneFeatures | None = None
        self._features: dict[str, TaskFeatures] = {}

    def get(self, cell: Cell) -> tuple[TaskData, TaskFeatures, str]:
        """Return data, features and type of the backbone for a cell.

        Raises:
            UserError: The model or data are missing or do not fit.
        """
        name = cell.task.name
        if name not in self._tasks:
            self._tasks[name] = load_task(cell.task)
        if self._extractor is None or self._extractor.model != cell.model:
            self._extractor, self._features = BackboneFeatures(cell.model, self.cache, self.console), {}
        if name not in self._features:
            self._features[name] = TaskFeatures(self._extractor, self._tasks[name], name)
        return self._tasks[name], self._features[name], self._extractor.architecture


def describe(record: Record) -> str:
    """Return the progress line of a finished cell."""
    scores = [float("nan") if row["score"] is None else 100 * row["score"] for row in record["rows"]]
    return f"in domain {scores[0]:.1f}" + (f", out of domain {np.mean(scores[1:]):.1f}" if len(scores) > 1 else "")


def results_frame(grid: Grid[Cell]) -> pd.DataFrame:
    """Return the rows of all cells that have run, in the order of the study."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, cell in grid.cells.items():
        if name in grid.pending:
            continue
        record = read_record(grid.folder / name)
        names = {
            "model": cell.model.name, "gamma": cell.model.gamma, "model_seed": cell.model.seed,
            "task": cell.task.name, "noise": cell.noise, "fraction": cell.fraction, "tuning": cell.tuning.name,
            "seed": cell.seed, "metric": cell.task.metric, "status": record["status"], "reason": record["reason"],
        }  # fmt: skip
        if record["status"] == FAILED:
            rows.append(names)
            continue
        shared = {"seconds": record["seconds"], "warnings": "; ".join(record["warnings"])}
        rows += [names | row | shared for row in record["rows"]]
    return pd.DataFrame(rows)


def publish(study: Study, frame: pd.DataFrame, folder: Path) -> None:
    """Write results.parquet, results.md, and the figures for which there are enough cells."""
    if not len(frame):
        return
    write_table(folder / "results.parquet", lambda path: frame.to_parquet(path, index=False))
    done, failed = frame[frame["status"] == DONE], frame[frame["status"] == FAILED]
    plots = figures(study, done) if len(done) else {}
    for name, svg in plots.items():
        write_text(folder / f"{name}.svg", svg)
    write_text(folder / "results.md", markdown(study, done, failed, list(plots)))


def sample_fraction(y: Int[np.ndarray, " N"], fraction: float, seed: int) -> Int[np.ndarray, " M"]:
    """Return the rows of a fraction: floor(fraction n_c) of every class, at least one."""
    if fraction == 1.0:
        return np.arange(len(y))
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(y == c))[: max(1, int(fraction * (y == c).sum()))] for c in np.unique(y)]
    return np.sort(np.concatenate(parts))


def train_cell(cell: Cell, task: TaskData, features: TaskFeatures, architecture: str, path: Path) -> dict[str, Any]:
    """Train the head of one cell and return its values: one row per domain, the first in domain.

    Args:
        cell: The cell.
        task: Data of its task.
        features: Features of these data.
        architecture: Type of the backbone, on which presets depend.
        path: Folder of the cell; nothing but the record is written.
    """
    start = time.perf_counter()
    method = cell.tuning.configure(architecture)
    rows = sample_fraction(task.y, cell.fraction, cell.seed)
    x, num_classes = features.train[rows], len(task.classes)
    scale = 1.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if cell.task.regression:
            y, scale = _standardize(task.numbers()[rows])
            head, history = fit_arrays.fit_head(fit_arrays.as_regression(method), x, y, np.ones(len(y)), 1, cell.seed)
        else:
            y = flip_labels(parse_noise(cell.noise), task.y[rows], num_classes, cell.seed, x=x, names=task.classes)
            head, history = fit_arrays.fit_head(method, x, y, np.ones(len(y)), num_classes, cell.seed)
    out = []
    for k, (eval_set, x_eval) in enumerate(zip(task.eval_sets, features.eval, strict=True)):
        scores, z = (np.concatenate(part) for part in zip(*fit_arrays.predict_head(head, x_eval), strict=True))
        if cell.task.regression:
            results = _measure_numbers(scale * scores[:, 0], eval_set)
        else:
            results = _measure_classes(scores, task, eval_set)
        for domain, row in results.items():
            names = {"data": eval_set.data.name, "domain": domain, "role": "id" if k == 0 else "ood"}
            spectra = _spectra(z[eval_set.data.domains == domain])
            out.append({**names, "score": row[cell.task.metric], **row, **spectra})
    return {
        "rows": out,
        "losses": {key: value for key, value in history[-1].items() if key.startswith("loss")},
        "warnings": [str(warning.message) for warning in caught if warning.category is UserWarning],
        "seconds": time.perf_counter() - start,
    }


def _standardize(y: Shaped[np.ndarray, " N"]) -> tuple[Shaped[np.ndarray, " N"], float]:
    deviation = float(y.std()) or 1.0
    return (y - y.mean()) / deviation, deviation


def _measure_classes(scores: np.ndarray, task: TaskData, eval_set: EvalSet) -> dict[str, dict[str, Any]]:
    e = np.exp(scores - scores.max(1, keepdims=True))
    refuse_unknown(eval_set.data, task.classes, eval_set.class_map)
    return by_domain(e / e.sum(1, keepdims=True), task.classes, eval_set.data, eval_set.class_map, eval_set.subset)


def _measure_numbers(predicted: np.ndarray, eval_set: EvalSet) -> dict[str, dict[str, Any]]:
    data = eval_set.data
    y, out = labels_as_numbers(data.names)[data.codes], {}
    for domain in dict.fromkeys(data.domains.tolist()):
        rows = data.domains == domain
        out[domain] = {"samples": int(rows.sum()), "pearson": metrics.pearson(predicted[rows], y[rows])}
    return out


def _spectra(z: np.ndarray) -> dict[str, float]:
    """Return SVE and LSVR of the classifier's inputs by the authors' code and, as `…_raw`, by the paper's text."""
    code, raw = (spectrum(z, **PRESETS[name]) for name in ("official", "paper"))
    return {"sve": code.sve, "lsvr": code.lsvr, "sve_raw": raw.sve, "lsvr_raw": raw.lsvr}
