"""Build the page of a comparison from the matrix's folder; it needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.config.run import read_config
from cleantune.errors import UserError
from cleantune.report import tables
from cleantune.report.svg import Plot, sanitize
from cleantune.report.templates import render_page
from cleantune.report.wording import display_method
from cleantune.storage.files import write_text
from cleantune.studies.compare import figures
from cleantune.studies.compare.scores import Score, scores
from cleantune.studies.compare.table import legend, percent_text
from cleantune.studies.grid import DONE, FAILED
from cleantune.utils import format as fmt

if TYPE_CHECKING:
    import pandas as pd

QUALITIES = (("purity", "Purity", "correct fraction of the selected labels (%)"),
             ("recall", "Recall", "selected fraction of the correct labels (%)"))  # fmt: skip
COSTS = (
    ("forward_passes", "As run, with cached features", "forward passes (multiples of the training split)"),
    ("forward_passes_uncached", "Without a cache", "forward passes without a cache (multiples of the training split)"),
)


def build(out: Path) -> Path:
    """Write compare.html from the tables in a matrix's folder, and return its path.

    Raises:
        UserError: The folder has no finished matrix.
    """
    import pandas as pd

    try:
        frame, epochs = (pd.read_parquet(out / f"{name}.parquet") for name in ("compare", "epochs"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} has no finished matrix ({error}); finish it with --resume") from None
    config = read_config(out / "config.toml")
    parts = about(frame, config) | table(frame) | plots(frame, epochs) | cells(frame)
    write_text(out / "compare.html", render_page("cleantune.studies.compare", "page.html", parts))
    return out / "compare.html"


def about(frame: pd.DataFrame, config: dict[str, Any]) -> dict[str, Any]:
    """Return title, conclusions, facts and settings."""
    data = str(config["data"].get("data", ""))
    first = frame.iloc[0]
    facts = [
        ("data", Path(data).name or data),
        ("training samples", fmt.count(first_number(frame["train_size"]))),
        ("test samples", fmt.count(first_number(frame["test_size"]))),
        ("entries", fmt.count(frame.groupby(["entry", "tuning"]).ngroups)),
        ("noises", fmt.count(frame["noise"].nunique())),
        ("models", ", ".join(dict.fromkeys(frame["model"]))),
        ("seeds", ", ".join(str(s) for s in dict.fromkeys(frame["seed"]))),
        ("model selection", first["model_selection"]),
        ("cells", f"{(frame['status'] == DONE).sum()} of {len(frame)} done"),
        ("time", fmt.duration(float(frame["seconds"].fillna(0).sum()))),
    ]
    return {
        "title": f"Comparison on {Path(data).name or data}",
        "data": Path(data).name or data,
        "facts": [(name, sanitize(value, 200)) for name, value in facts if value not in ("", "–")],
        "settings": tables.flatten_settings(config),
        "conclusions": conclusions(frame),
        "legend": legend(frame),
    }


def first_number(values: Any) -> float | None:
    """Return the first value that is not missing."""
    values = values.dropna()
    return float(values.iloc[0]) if len(values) else None


def conclusions(frame: pd.DataFrame) -> list[str]:
    """Return a sentence per model and noise: the best entry and those tied with it."""
    out, many = [], frame["model"].nunique() > 1
    for (model, noise), column in scores(frame).items():
        best = next((score for score in column if score.mark == "best"), None)
        place = f"{noise}{f' with {model}' if many else ''}"
        if best is None:
            out.append(f"{place}: no cell has finished.")
            continue
        ties = [score_title(score) for score in column if score.mark == "tie"]
        tied = f", tied with {', '.join(ties)}" if ties else ", ahead of all others by more than one standard error"
        alone = sum(score.mean is not None for score in column) == 1
        out.append(
            f"{place}: {score_title(best)} is best with {fmt.percent(best.mean)} ± {100 * (best.error or 0):.1f}"
            f"{'' if alone else tied}."
        )
    return out


def score_title(score: Score) -> str:
    """Return the name of an entry with its tuning."""
    return f"{display_method(score.entry)} {score.tuning}"


def table(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the table in the shape of the paper's: a block per model, a row per entry, a column per noise."""
    columns_of = scores(frame)
    noises = list(dict.fromkeys(noise for _, noise in columns_of))
    ranks_last = set(frame["model_selection"].dropna()) <= {"last"}
    blocks = []
    for model in dict.fromkeys(model for model, _ in columns_of):
        columns = [columns_of[model, noise] for noise in noises]
        rows = []
        for rank, first in enumerate(columns[0]):
            cells = [
                {
                    "best": percent_text(column[rank].best, column[rank].best_std),
                    "last": percent_text(column[rank].last, column[rank].last_std),
                    "mark": column[rank].mark,
                    "num_failed": column[rank].num_failed,
                    "is_done": column[rank].mean is not None,
                }
                for column in columns
            ]
            rows.append({"tuning": first.tuning, "name": display_method(first.entry), "cells": cells})
        blocks.append({"model": model, "rows": rows})
    return {"blocks": blocks, "noises": noises, "ranks_last": ranks_last}


def plots(frame: pd.DataFrame, epochs: pd.DataFrame) -> dict[str, Any]:
    """Return all figures in the order of the page."""
    several = frame["model"].nunique() > 1
    bars, costs, qualities = [], [], []
    for number, ((model, noise), column) in enumerate(scores(frame).items()):
        title = f"{noise}, {model}" if several else noise
        finished = [score for score in column if score.mean is not None]
        if finished:
            values = ", ".join(f"{score_title(score)} {fmt.percent(score.mean)}" for score in finished)
            bars.append(Plot(title, figures.bars(column, f"bars-{number}", f"Test accuracy under {title}: {values}")))
        if "purity" in epochs:
            block = epochs[(epochs["model"] == model) & (epochs["noise"] == noise)]
            qualities += quality_plots(block, number, title)
    for number, model in enumerate(dict.fromkeys(frame["model"])):
        costs += cost_plots(frame[frame["model"] == model], number, f", {model}" if several else "")
    return {"bars": bars, "costs": costs, "qualities": qualities}


def cost_plots(frame: pd.DataFrame, number: int, model: str) -> list[Plot]:
    """Return accuracy against both measures of cost, each the mean over all noises and seeds."""
    plots = []
    done = frame[frame["status"] == DONE]
    num_noises = frame["noise"].nunique()
    for column, title, unit in COSTS:
        points = []
        for (entry, tuning), block in done.groupby(["entry", "tuning"], sort=False):
            costs = (block[column] / block["train_size"]).dropna().astype(float)
            if len(costs) and float(costs.mean()) > 0:
                accuracy = 100 * float(block["accuracy"].astype(float).mean())
                method = str(block["method"].iloc[0])
                points.append(figures.Point(str(entry), method, str(tuning), float(costs.mean()), accuracy))
        if points:
            values = (f"{display_method(p.name)} {p.tuning} {p.accuracy:.1f} % at {p.cost:.1f}" for p in points)
            alt = f"Test accuracy against {unit}: {', '.join(values)}"
            svg = figures.against_cost(points, unit, f"{column.replace('_', '-')}-{number}", alt)
            plots.append(Plot(f"{title}{model}", svg, f"Means over {num_noises} noises." if num_noises > 1 else ""))
    return plots


def quality_plots(epochs: pd.DataFrame, number: int, title: str) -> list[Plot]:
    """Return purity and recall over the epochs of every entry that selects samples, as means over seeds."""
    plots = []
    methods = list(dict.fromkeys(epochs["method"]))
    for column, name, unit in QUALITIES:
        curves = []
        for (entry, tuning), block in epochs.groupby(["entry", "tuning"], sort=False):
            mean = block.groupby("row")[column].mean().astype(float)
            measured = mean.dropna()
            if len(measured):
                progress = [100 * (int(row) + 1) / len(mean) for row in measured.index]
                method = str(block["method"].iloc[0])
                curves.append(figures.Curve(str(entry), method, str(tuning), progress, (100 * measured).tolist()))
        if curves:
            ends = ", ".join(f"{display_method(c.name)} {c.tuning} {c.values[-1]:.1f} %" for c in curves)
            alt = f"{name} over epochs, at the end: {ends}."
            svg = figures.over_epochs(curves, methods, unit, f"{column}-{number}", alt)
            plots.append(Plot(f"{name}, {title}", svg))
    return plots


def cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Return every finished cell, and every failed one with its reason."""
    done = frame[frame["status"] == DONE].to_dict("records")
    failed = frame[frame["status"] == FAILED].to_dict("records")
    return {"cells": [cell_row(row) for row in done], "failed": [cell_row(row) for row in failed], "total": len(frame)}


def cell_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a cell as the page shows it, with None for missing values."""
    import pandas as pd

    out: dict[str, Any] = {key: None if pd.isna(value) else value for key, value in row.items()}
    out["entry"] = display_method(str(out["entry"]))
    rate, backbone = out["learning_rate"], out["backbone_learning_rate"]
    out["rate"] = "–" if rate is None else f"{rate:.3g}" + (f", backbone {backbone:.3g}" if backbone else "")
    passes, size = out["forward_passes"], out["train_size"]
    out["relative_cost"] = passes / size if passes and size else None
    return out
