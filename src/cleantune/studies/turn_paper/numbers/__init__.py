"""Provide the numbers of TURN's paper (arXiv:2310.17668), one CSV file per table, and notes on them.

Columns: data, model, noise, variant, method, scope, samples, purity (%), best (%), last (%); empty where the table
does not have them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("data", "model", "noise", "variant", "method", "scope")
"""Columns that name a cell."""
TABLES = ("table2", "table3", "table4", "table5", "table9")
"""Blocks with numbers in the paper."""
MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Note:
    """A footnote and the paper's numbers that it is about."""

    text: str
    mark: str
    """Letter; empty if the note is about the whole block."""
    claim: str
    """Claim of the paper's text, if it prints no number."""
    cells: frozenset[tuple[str, ...]]
    """Cells with the mark, by the values of `KEYS`."""


def numbers(block: str) -> pd.DataFrame:
    """Return the paper's numbers of a block, one row per cell; no rows if it prints none."""
    import pandas as pd

    path = files(__package__).joinpath(f"{block}.csv")
    columns = [*KEYS, "samples", "purity", "best", "last"]
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    with path.open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=dict.fromkeys(KEYS, str), keep_default_na=False, na_values={})
    for column in columns[len(KEYS) :]:
        table[column] = pd.to_numeric(table[column])
    return table[columns]


def notes(block: str) -> list[Note]:
    """Return the footnotes of a block in order, with the marks a, b, c and so on."""
    read = tomllib.loads(files(__package__).joinpath("notes.toml").read_text(encoding="utf-8"))
    table, out, marks = numbers(block), [], iter(MARKS)
    for entry in read.get(block, []):
        cells = frozenset(_cells(table, entry))
        out.append(Note(entry["text"], next(marks) if cells else "", entry.get("claim", ""), cells))
    return out


def _cells(table: pd.DataFrame, entry: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    if entry.get("last_above_best"):
        chosen = table["last"] > table["best"]
    elif entry.get("not_of_2500"):
        web = table["data"] == "mini-WebVision"
        chosen = web & ~(of_2500(table["best"]) & of_2500(table["last"]))
    elif "where" in entry:
        chosen = table["data"].notna()
        for column, value in entry["where"].items():
            chosen &= table[column].isin(value if isinstance(value, list) else [value])
    else:
        return []
    return [tuple(row) for row in table.loc[chosen, list(KEYS)].to_numpy().tolist()]


def of_2500(percent: Any) -> Any:
    """Return whether a percentage with two decimals is a fraction of 2,500."""
    return (percent * 100).round().astype(int) % 4 == 0
