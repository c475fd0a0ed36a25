"""The cells of an experiment that `cleantune.compare` runs: one matrix a data set, and its results as records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.config.schema import merge
from cleantune.studies.compare import compare
from cleantune.studies.compare.reading import resolve
from cleantune.studies.turn_paper.experiment import Cell, Experiment

if TYPE_CHECKING:
    import pandas as pd

COPIED = (
    "accuracy_last",
    "accuracy_best_validation",
    "noise_true_rate",
    "forward_passes",
    "forward_passes_uncached",
    "seconds",
)
"""Columns of compare.parquet that a record takes as they are."""


def table_of(made: Experiment, cells: list[Cell], found: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The table of `compare` that runs these cells of one data set.

    Args:
        made: The experiment.
        cells: Cells of one data set, all of their entries, models, noises and seeds with one another.
        found: The tables data and model by data set and model.
    """
    models = list(dict.fromkeys(cell.model for cell in cells))
    first = found[cells[0].data, models[0]]
    common = merge(dict(made.fit), {key: value for key, value in first.items() if key != "model"})
    looks = {key: value for key, value in first["model"].items() if key != "model"}
    axes = {
        "entries": list({entry_name(cell): entry(cell) for cell in cells}.values()),
        "noises": list(dict.fromkeys(cell.noise for cell in cells)),
        "models": [found[cells[0].data, model]["model"]["model"] for model in models],
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }
    return merge(common, {"matrix": axes} | ({"model": looks} if looks else {}))


def entry_name(cell: Cell) -> tuple[str, str]:
    """By what the matrix tells a cell's entry: its name and scope."""
    return cell.variant or cell.method, cell.scope


def entry(cell: Cell) -> dict[str, Any]:
    """A cell's row of the matrix."""
    own = {k: v for k, v in cell.settings["method"].items() if k not in ("name", "scope", "preset")}
    name, scope = entry_name(cell)
    preset = cell.settings["method"]["preset"]
    return {"name": name, "method": cell.method, "scope": scope, "preset": preset, "settings": own}


def run(
    made: Experiment, cells: list[Cell], found: Mapping[tuple[str, str], dict[str, Any]], out: Path, quiet: bool
) -> dict[Cell, dict[str, Any]]:
    """Run the cells of one data set, or go on with them, and give their records.

    Raises:
        UserError: As `compare`.
    """
    table = table_of(made, cells, found)
    names = list(dict.fromkeys(cell.model for cell in cells))
    labels = dict(zip(names, resolve(table).labels, strict=True))
    done = compare(config=table, out=out, resume=(out / "config.toml").is_file(), quiet=quiet)
    rows, epochs = done.table, done.epochs
    return {cell: record(rows, epochs, cell, labels[cell.model]) for cell in cells}


def record(rows: pd.DataFrame, epochs: pd.DataFrame, cell: Cell, model: str) -> dict[str, Any]:
    """What the matrix knows of a cell, as `running.CellRunner` would say it."""
    mine, looked = (_of(table, cell, model) for table in (rows, epochs))
    [one] = _known(mine)
    every = [row for row in _known(looked) if row.get("selected") is not None]
    last = every[-1] if every else {}
    return {
        "status": one["status"],
        "reason": one["reason"] or "",
        **{name: one[name] for name in COPIED},
        **{name: last.get(name) for name in ("selected", "purity", "recall")},
        "rows": every,
    }


def _known(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, None where a value is missing."""
    plain = table.astype(object)
    return plain.where(table.notna(), None).to_dict("records")  # type: ignore[return-value]


def _of(table: pd.DataFrame, cell: Cell, model: str) -> pd.DataFrame:
    name, scope = entry_name(cell)
    keys = {"entry": name, "scope": scope, "noise": cell.noise, "model": model, "seed": cell.seed}
    if table.empty:
        return table
    chosen = table["seed"] == cell.seed
    for key, value in keys.items():
        chosen &= table[key] == value
    return table[chosen.fillna(False).astype(bool)]
