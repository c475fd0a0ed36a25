"""The page of a comparison, made from the matrix's folder alone and readable without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.config.run import read_config
from cleantune.errors import UserError
from cleantune.report import tables
from cleantune.report.svg import Plot, sanitize
from cleantune.report.templates import render_page
from cleantune.storage.files import write_text
from cleantune.studies.compare import figures
from cleantune.studies.compare.table import Score, legend, number, scores, shown
from cleantune.utils import format as fmt

if TYPE_CHECKING:
    import pandas as pd

QUALITIES = (("purity", "Purity", "share of the trusted labels that are right (%)"),
             ("recall", "Recall", "share of the right labels that are trusted (%)"))  # fmt: skip
COSTS = (
    ("forward_passes", "As it was run, features cached", "forward_passes (multiples of the training split)"),
    (
        "forward_passes_uncached",
        "Had nothing been cached",
        "forward_passes, nothing cached (multiples of the training split)",
    ),
)


def build(out: Path) -> Path:
    """Write compare.html into a matrix's folder from what lies there, and return its path.

    Raises:
        UserError: The folder holds no finished matrix.
    """
    import pandas as pd

    try:
        frame, epochs = (pd.read_parquet(out / f"{name}.parquet") for name in ("compare", "epochs"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no finished matrix ({error}); finish it with --resume") from None
    config = read_config(out / "config.toml")
    parts = about(frame, config) | table(frame) | plots(frame, epochs) | details(frame)
    write_text(out / "compare.html", render_page("cleantune.studies.compare", "page.html", parts))
    return out / "compare.html"


def about(frame: pd.DataFrame, config: dict[str, Any]) -> dict[str, Any]:
    """Title, verdict, facts and settings."""
    data = str(config["data"].get("data", ""))
    first = frame.iloc[0]
    facts = [
        ("data", Path(data).name or data),
        ("training samples", fmt.count(whole(frame["train_size"]))),
        ("test samples", fmt.count(whole(frame["test_size"]))),
        ("entries", fmt.count(frame.groupby(["entry", "tuning"]).ngroups)),
        ("noises", fmt.count(frame["noise"].nunique())),
        ("models", ", ".join(dict.fromkeys(frame["model"]))),
        ("seeds", ", ".join(str(s) for s in dict.fromkeys(frame["seed"]))),
        ("model chosen", first["chosen"]),
        ("cells", f"{(frame['status'] == 'done').sum()} of {len(frame)} done"),
        ("time", fmt.duration(float(frame["seconds"].fillna(0).sum()))),
    ]
    return {
        "title": f"Comparison on {Path(data).name or data}",
        "data": Path(data).name or data,
        "facts": [(name, sanitize(value, 200)) for name, value in facts if value not in ("", "–")],
        "settings": tables.settings(config),
        "verdict": verdict(frame),
        "legend": legend(frame),
    }


def whole(values: Any) -> float | None:
    """The first number that is there."""
    known = values.dropna()
    return float(known.iloc[0]) if len(known) else None


def verdict(frame: pd.DataFrame) -> list[str]:
    """Who is best under each noise, and who is tied with it."""
    out, many = [], frame["model"].nunique() > 1
    for (model, noise), each in scores(frame).items():
        best = next((s for s in each if s.mark == "best"), None)
        place = f"{noise}{f' with {model}' if many else ''}"
        if best is None:
            out.append(f"{place}: no cell was finished.")
            continue
        ties = [name_of(s) for s in each if s.mark == "tie"]
        tied = f", tied with {', '.join(ties)}" if ties else ", ahead of all others by more than one standard error"
        alone = sum(s.mean is not None for s in each) == 1
        out.append(
            f"{place}: {name_of(best)} is best with {fmt.percent(best.mean)} ± {100 * (best.error or 0):.1f}"
            f"{'' if alone else tied}."
        )
    return out


def name_of(score: Score) -> str:
    """An entry with what learns."""
    return f"{shown(score.entry)} {score.tuning}"


def table(frame: pd.DataFrame) -> dict[str, Any]:
    """The table in the shape of the paper's: a block a model, a row an entry, a column a noise."""
    found = scores(frame)
    noises = list(dict.fromkeys(noise for _, noise in found))
    by_last = set(frame["chosen"].dropna()) <= {"last"}
    blocks = []
    for model in dict.fromkeys(model for model, _ in found):
        columns = [found[model, noise] for noise in noises]
        rows = []
        for rank, first in enumerate(columns[0]):
            cells = [
                {
                    "best": number(column[rank].best, column[rank].best_std),
                    "last": number(column[rank].last, column[rank].last_std),
                    "mark": column[rank].mark,
                    "failed": column[rank].failed,
                    "known": column[rank].mean is not None,
                }
                for column in columns
            ]
            rows.append({"tuning": first.tuning, "name": shown(first.entry), "cells": cells})
        blocks.append({"model": model, "rows": rows})
    return {"blocks": blocks, "noises": noises, "by_last": by_last}


def plots(frame: pd.DataFrame, epochs: pd.DataFrame) -> dict[str, Any]:
    """All figures, in the order of the page."""
    many = frame["model"].nunique() > 1
    bars, costs, qualities = [], [], []
    for number_, ((model, noise), each) in enumerate(scores(frame).items()):
        title = f"{noise}, {model}" if many else noise
        if any(s.mean is not None for s in each):
            alt = f"Test accuracy under {title}: " + ", ".join(
                f"{name_of(s)} {fmt.percent(s.mean)}" for s in each if s.mean is not None
            )
            bars.append(Plot(title, figures.bars(each, f"bars-{number_}", alt)))
    for number_, model in enumerate(dict.fromkeys(frame["model"])):
        costs += cost_plots(frame[frame["model"] == model], number_, f", {model}" if many else "")
    if "purity" in epochs:
        for number_, (model, noise) in enumerate(scores(frame)):
            block = epochs[(epochs["model"] == model) & (epochs["noise"] == noise)]
            qualities += quality_plots(block, number_, f"{noise}, {model}" if many else str(noise))
    return {"bars": bars, "costs": costs, "qualities": qualities}


def cost_plots(frame: pd.DataFrame, place: int, model: str) -> list[Plot]:
    """Accuracy against both accountings of cost, each the mean over all noises and seeds."""
    found = []
    done = frame[frame["status"] == "done"]
    for column, title, unit in COSTS:
        points = []
        for (entry, tuning), block in done.groupby(["entry", "tuning"], sort=False):
            shares = (block[column] / block["train_size"]).dropna().astype(float)
            if len(shares) and float(shares.mean()) > 0:
                accuracy = 100 * float(block["accuracy"].astype(float).mean())
                points.append(
                    figures.Point(str(entry), str(block["method"].iloc[0]), str(tuning), float(shares.mean()), accuracy)
                )
        if points:
            alt = f"Test accuracy against {unit}: " + ", ".join(
                f"{shown(p.name)} {p.tuning} {p.accuracy:.1f} % at {p.cost:.1f}" for p in points
            )
            svg = figures.against_cost(points, unit, f"{column.replace('_', '-')}-{place}", alt)
            found.append(Plot(f"{title}{model}", svg, note_of(frame)))
    return found


def note_of(frame: pd.DataFrame) -> str:
    """Over what a point is a mean."""
    noises = frame["noise"].nunique()
    return f"Means over {noises} noises." if noises > 1 else ""


def quality_plots(epochs: pd.DataFrame, place: int, title: str) -> list[Plot]:
    """Purity and recall over the epochs of every entry that selects, means over seeds."""
    found = []
    methods = list(dict.fromkeys(epochs["method"]))
    for column, name, unit in QUALITIES:
        curves = []
        for (entry, tuning), block in epochs.groupby(["entry", "tuning"], sort=False):
            mean = block.groupby("row")[column].mean().astype(float)
            known = mean.dropna()
            if len(known):
                share = [100 * (int(row) + 1) / len(mean) for row in known.index]
                method = str(block["method"].iloc[0])
                curves.append(figures.Curve(str(entry), method, str(tuning), share, (100 * known).tolist()))
        if curves:
            ends = ", ".join(f"{shown(c.name)} {c.tuning} {c.values[-1]:.1f} %" for c in curves)
            svg = figures.over_epochs(
                curves, methods, unit, f"{column}-{place}", f"{name} over epochs, at the end: {ends}."
            )
            found.append(Plot(f"{name}, {title}", svg))
    return found


def details(frame: pd.DataFrame) -> dict[str, Any]:
    """Every cell, and what failed."""
    done = frame[frame["status"] == "done"].to_dict("records")
    failed = frame[frame["status"] == "failed"].to_dict("records")
    return {"cells": [detail(row) for row in done], "failed": [detail(row) for row in failed], "total": len(frame)}


def detail(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A cell as the page shows it."""
    known: dict[str, Any] = {key: None if value is None or value != value else value for key, value in missing(row)}
    known["entry"] = shown(str(known["entry"]))
    rate, backbone = known["learning_rate"], known["backbone_learning_rate"]
    known["rate"] = "–" if rate is None else f"{rate:.3g}" + (f", backbone {backbone:.3g}" if backbone else "")
    known["times"] = (
        known["forward_passes"] / known["train_size"] if known["forward_passes"] and known["train_size"] else None
    )
    return known


def missing(row: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """The items of a row with pandas' mark for what is missing as None."""
    import pandas as pd

    return [(key, None if value is pd.NA else value) for key, value in row.items()]
