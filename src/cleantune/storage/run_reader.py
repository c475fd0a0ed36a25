"""Reads a run folder: what must lie there is checked, what may lie there can be absent."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cleantune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
LABEL_COLUMNS = ("id", "split", "given_label", "suggested_label", "label_score", "is_label_issue")
LOSS_COLUMNS = ("split", "given_label", "loss_first", "loss_last")
SUMMARY_KEYS = ("method", "class_names", "samples.train")


@dataclass(frozen=True)
class RunDir:
    """What a run left behind; None stands for evidence that is not there."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    labels: pd.DataFrame
    losses: pd.DataFrame | None
    mixtures: dict[str, Any] | None
    gallery: list[dict[str, Any]] | None
    bad: list[dict[str, str]] | None

    def get(self, path: str) -> Any:
        """The value under a dotted path of summary.json, None where there is none."""
        return value_at(self.summary, path)

    def number(self, path: str) -> float | None:
        """The finite number under a dotted path of summary.json, None where there is none."""
        return finite(self.get(path))

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the model's outputs."""
        return [str(name) for name in self.summary["class_names"]]


def value_at(tree: Any, path: str) -> Any:
    """The value under a dotted path of nested tables, None where a part of the path is missing."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def finite(value: Any) -> float | None:
    """The value as a float, None for what is no finite number (a missing or diverged measurement)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def class_name(value: Any) -> str:
    """A label as the class is called: a column of whole numbers with a gap comes back from Parquet as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read(run: Path) -> RunDir:
    """Everything a report is made of.

    Args:
        run: The run folder.

    Raises:
        UserError: The folder or a required file is missing, or a file cannot be read.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run folder; name the folder that `cleantune fit … --out` wrote")
    required: dict[str, Callable[[Path], Any]] = {
        "config.toml": lambda path: tomllib.loads(path.read_text("utf-8")),
        "metrics.jsonl": _json_lines,
        "summary.json": _json_table,
        "labels.parquet": lambda path: _table(path, LABEL_COLUMNS),
    }
    for name in required:
        if not (run / name).is_file():
            raise UserError(
                f"{run / name} is missing, so the run is unfinished or incomplete; "
                "finish it with the same `cleantune fit` command and --resume"
            )
    found = {name: _open(run / name, opener) for name, opener in required.items()}
    evidence = run / "evidence"
    return RunDir(
        name=run.resolve().name,
        config=found["config.toml"],
        rows=found["metrics.jsonl"],
        summary=_checked(run, found["summary.json"]),
        labels=_with_names(found["labels.parquet"]),
        losses=_optional(evidence / "losses.parquet", lambda path: _with_names(_table(path, LOSS_COLUMNS))),
        mixtures=_optional(evidence / "mixtures.json", _json_table),
        gallery=_optional(evidence / "gallery.json", _json_list),
        bad=_optional(evidence / "unreadable_samples.csv", _csv),
    )


def _open(path: Path, opener: Callable[[Path], T]) -> T:
    """What the opener makes of the file; whatever goes wrong inside becomes a sentence that names the file."""
    try:
        return opener(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow, json, tomllib and unicode errors are all ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        remedy = "remove it and rebuild" if path.parent.name == "evidence" else "repeat the run with --overwrite"
        raise UserError(f"{path} cannot be read ({reason}); {remedy}") from error


def _optional(path: Path, opener: Callable[[Path], T]) -> T | None:
    return _open(path, opener) if path.is_file() else None


def _checked(run: Path, summary: dict[str, Any]) -> dict[str, Any]:
    for key in SUMMARY_KEYS:
        if value_at(summary, key) is None:
            raise UserError(f"{run / 'summary.json'} lacks {key}; repeat the run with --overwrite")
    return summary


def _json_table(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _json_list(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("not a JSON list of objects")
    return content


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON") from error
        if not isinstance(row, dict) or "phase" not in row or "epoch" not in row:
            raise ValueError(f"line {number} names no phase and epoch")
        rows.append(row)
    return rows


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_parquet(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    return table


def _with_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every label as the name of its class, None where there is none."""
    named = table.copy(deep=False)
    for column in ("given_label", "suggested_label", "true_label"):
        if column in table:
            there = table[column].notna()
            names = {value: class_name(value) for value in table.loc[there, column].unique()}
            named[column] = table[column].astype(object).map(names).astype(object).where(there, None)
    return named
