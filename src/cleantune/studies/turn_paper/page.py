"""Build the page of a reproduced block: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cleantune.pipeline.record import versions
from cleantune.report.templates import render_page
from cleantune.studies.grid import DONE
from cleantune.studies.turn_paper import figures, sheets
from cleantune.studies.turn_paper.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd


def render(
    experiment: Experiment,
    table: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    tables: Sequence[sheets.Sheet],
    synthetic: bool,
    failed: Sequence[str],
) -> str:
    """Return the page as HTML.

    Args:
        experiment: The experiment.
        table: One row per cell, with the paper's numbers.
        records: Records of the cells, with their epochs and points.
        tables: The tables in the paper's shape.
        synthetic: Whether data and models are synthetic.
        failed: A sentence for each failed cell.
    """
    done = int((table["status"] == DONE).sum())
    facts = [
        ("cells", f"{done} of {len(table)} done"),
        ("data", ", ".join("synthetic" if synthetic else f"{s.name} ({s.path})" for s in experiment.data)),
        ("models", ", ".join(f"tiny random {m.architecture}" if synthetic else m.model for m in experiment.models)),
        ("settings", f"preset {experiment.preset}"),
        ("seeds", ", ".join(map(str, experiment.seeds))),
        ("measured noise rate", _rates(table)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    parts = {
        "experiment": experiment,
        "name": f"{experiment.block[:-1].capitalize()} {experiment.block[-1]}",
        "facts": facts,
        "sheets": tables,
        "legend": sheets.legend(tables),
        "notes": sheets.shown_notes(tables, experiment.block),
        "plots": figures.plots(experiment, table, records),
        "conclusions": [],
        "warning": sheets.WARNING if synthetic else "",
        "failed": failed,
    }
    return render_page("cleantune.studies.turn_paper", "page.html", parts)


def _rates(table: pd.DataFrame) -> str:
    rates = table.dropna(subset=["noise_true_rate"]).groupby("noise", sort=False)["noise_true_rate"].mean()
    return ", ".join(f"{noise}: {rate:.1%}" for noise, rate in rates.items()) or "unknown"
