"""The page of a reproduced block: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cleantune.pipeline.record import versions
from cleantune.report.templates import render_page
from cleantune.studies.turn_paper import plots, sheets
from cleantune.studies.turn_paper.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd


def render(
    made: Experiment,
    table: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    shown: Sequence[sheets.Sheet],
    synthetic: bool,
    failed: Sequence[str],
) -> str:
    """The page as HTML.

    Args:
        made: The experiment.
        table: One row a cell, with the paper's numbers beside ours.
        records: The cells with their rows and points.
        shown: The tables.
        synthetic: Whether data and models were made up.
        failed: A sentence for each cell that failed.
    """
    done = int((table["status"] == "done").sum())
    facts = [
        ("cells", f"{done} of {len(table)} done"),
        ("data", ", ".join("stand-in" if synthetic else f"{s.name} ({s.path})" for s in made.data)),
        ("models", ", ".join(f"tiny random {m.architecture}" if synthetic else m.model for m in made.models)),
        ("settings", f"preset {made.preset}"),
        ("seeds", ", ".join(map(str, made.seeds))),
        ("measured noise rate", _rates(table)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    parts = {
        "made": made, "name": made.block[:-1].capitalize() + " " + made.block[-1], "facts": facts, "sheets": shown,
        "legend": sheets.legend(shown), "notes": sheets.shown_notes(shown, made.block),
        "plots": plots.plots(made, table, records), "synthetic": sheets.WARNING if synthetic else "", "failed": failed,
    }  # fmt: skip
    return render_page("cleantune.studies.turn_paper", "page.html", parts)


def _rates(table: pd.DataFrame) -> str:
    known = table.dropna(subset=["noise_true_rate"]).groupby("noise", sort=False)["noise_true_rate"].mean()
    return ", ".join(f"{noise}: {rate:.1%}" for noise, rate in known.items()) or "not known"
