"""Checked readers of the files in a run's folder: a damaged file becomes one sentence that names it."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cleantune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


def read_checked(path: Path, reader: Callable[[Path], T], remedy: str = "repeat the run with --overwrite") -> T:
    """Return what a reader makes of a file.

    Args:
        path: File to read.
        reader: Function of the path.
        remedy: Advice for a file that cannot be read.

    Raises:
        UserError: The file cannot be read; the sentence names it and the reason.
    """
    try:
        return reader(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow, json, tomllib and unicode errors are all ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{path} cannot be read ({reason}); {remedy}") from error


def read_toml_table(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    return tomllib.loads(path.read_text("utf-8"))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: The file has another type.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects.

    Raises:
        ValueError: The file has another type.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("not a JSON list of objects")
    return content


def read_metrics_lines(path: Path) -> list[dict[str, Any]]:
    """Read the metrics of all epochs, one JSON object a line.

    Raises:
        ValueError: A line is no JSON or names no phase and epoch; the message has its number.
    """
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


def read_csv_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as one mapping a row; empty cells are empty strings."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def read_parquet(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a Parquet table whose labels become the names of their classes.

    Args:
        path: File to read.
        columns: Columns that must be there.

    Raises:
        ValueError: A column is missing.
    """
    import pandas as pd

    table = pd.read_parquet(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    return _with_class_names(table)


def _with_class_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every label as the name of its class, None where there is none."""
    renamed = table.copy(deep=False)
    for column in ("given_label", "suggested_label", "true_label"):
        if column in table:
            present = table[column].notna()
            names = {value: class_name(value) for value in table.loc[present, column].unique()}
            renamed[column] = table[column].astype(object).map(names).astype(object).where(present, None)
    return renamed


def class_name(value: Any) -> str:
    """Return a label as the name of its class; Parquet returns integers with gaps as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def value_at(tree: Any, path: str) -> Any:
    """Return the value under a dotted path of nested tables, None where a part of the path is missing."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def finite(value: Any) -> float | None:
    """Return the value as a float, None where it is no finite number (a missing or diverged measurement)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
