"""Results of verbs: key numbers on standard output, tables in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cleantune.errors import UserError
from cleantune.utils.format import count, percent

if TYPE_CHECKING:
    import pandas as pd


def print_summary(summary: dict[str, Any]) -> None:
    """Print the key numbers of `summary.json` as aligned rows."""
    accuracy, noise = summary["accuracy"], summary["noise"]
    rows = [
        ("test accuracy", percent(accuracy["test"])),
        ("  CE linear probe", percent(summary["baseline"]["accuracy"]["test"])),
        ("validation accuracy", f"{percent(accuracy['validation'])} (given labels)"),
        ("label issues", count(summary["issues"]["count"])),
        ("estimated noise rate", percent(noise["estimated_rate"])),
    ]
    if "true_rate" in noise:
        rows.append(("  true noise rate", percent(noise["true_rate"])))
    print_aligned(rows)


def print_aligned(rows: list[tuple[str, str]]) -> None:
    """Print pairs of a name and a value as two aligned columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def check_table_path(out: Path | None) -> None:
    """Check that `--out` names a table.

    Raises:
        UserError: The suffix is neither .parquet nor .csv.
    """
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise UserError(f"--out {out}: the table is written as .parquet or .csv")


def write_frame(out: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet or CSV, by the suffix; make its folder if needed."""
    from cleantune.storage.files import write_table

    out.parent.mkdir(parents=True, exist_ok=True)
    save = frame.to_parquet if out.suffix == ".parquet" else frame.to_csv
    write_table(out, lambda path: save(path, index=False))
