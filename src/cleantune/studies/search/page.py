"""Build the page of a search: parallel coordinates, importance of each hyperparameter, and all trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cleantune.config.run import read_config
from cleantune.report import tables
from cleantune.report.svg import FIRST, INK, LINE, MUTED, canvas, inline, sanitize
from cleantune.report.templates import render_page
from cleantune.storage.files import write_text
from cleantune.studies.grid import FAILED
from cleantune.studies.search.ranking import Ranking, importances
from cleantune.studies.search.space import Dimension, scale_values
from cleantune.studies.search.trial_table import value_text
from cleantune.studies.search.trials import OBJECTIVES, Study

if TYPE_CHECKING:
    import pandas as pd

MAX_LABELS = 6
"""Values of a setting that are all written at its axis at most."""


def build(study: Study, frame: pd.DataFrame, ranking: Ranking, summary: list[str]) -> Path:
    """Write search.html into the folder of a search, and return its path."""
    finished = frame[frame["objective"].notna()].reset_index(drop=True)
    varied = [d for d in study.space if finished[d.name].nunique() > 1]
    data = str(study.table.get("data", {}).get("data", ""))
    config = read_config(study.out / "config.toml")
    percent = study.objective != "noisy-val-gce"
    parts = {
        "data": Path(data).name or data,
        "method": config["method"]["name"],
        "conclusions": [line[0].upper() + line[1:] for line in summary],
        "meaning": OBJECTIVES[study.objective],
        "coordinates": coordinates(finished, varied, ranking, percent) if len(finished) > 1 and varied else None,
        "importance": importance_plot(finished, varied),
        "names": [d.name for d in study.space],
        "rows": trial_rows(frame, study, percent),
        "failed": frame[frame["status"] == FAILED].to_dict("records"),
        "settings": tables.flatten_settings(read_config(study.out / "best.toml")),
    }
    write_text(study.out / "search.html", render_page("cleantune.studies.search", "page.html", parts))
    return study.out / "search.html"


def objective_text(value: float, percent: bool) -> str:
    """Return an objective as text."""
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}"


def trial_rows(frame: pd.DataFrame, study: Study, percent: bool) -> list[dict[str, Any]]:
    """Return the trials as the page shows them, the best first."""
    order = frame.sort_values("objective", ascending=False, na_position="last")
    out = []
    for row in order.to_dict("records"):
        has_objective = row["objective"] == row["objective"]
        mark = "chosen" if row["chosen"] else "tied" if row["tied"] else ""
        out.append({
            "trial": f"{row['trial']}{' (default)' if row['trial'] == 0 else ''}",
            "state": "stopped early" if row["stopped"] else row["status"],
            "objective": objective_text(row["objective"], percent) if has_objective else "–",
            "error": objective_text(row["standard_error"], percent) if has_objective else "–",
            "values": [value_text(row[d.name]) for d in study.space],
            "epochs": row["epochs"],
            "seconds": row["seconds"] if row["seconds"] == row["seconds"] else None,
            "mark": mark,
        })  # fmt: skip
    return out


def coordinates(frame: pd.DataFrame, space: list[Dimension], ranking: Ranking, percent: bool) -> Markup:
    """Draw a line per trial through settings and objective; the chosen one thick, ties with the best in color."""
    objective = frame["objective"].to_numpy(float)
    low, high = float(objective.min()), float(objective.max())
    height = (objective - low) / (high - low) if high > low else np.full(len(objective), 0.5)
    axes_values = [*(scale_values(d, frame[d.name].tolist()) for d in space), height]
    with canvas(max(420, 130 * len(axes_values)), 300) as figure:
        axes = figure.add_subplot()
        for k, trial in enumerate(frame["trial"].tolist()):
            tied = trial in ranking.tied
            color = INK if trial == ranking.chosen else FIRST if tied else LINE
            axes.plot(
                range(len(axes_values)), [column[k] for column in axes_values], color=color,
                linewidth=2.4 if trial == ranking.chosen else 1.1, zorder=2 + tied + 2 * (trial == ranking.chosen),
            )  # fmt: skip
        for place, dimension in enumerate(space):
            mark_axis(axes, place, dimension, frame[dimension.name].tolist())
        last = len(space)
        axes.axvline(last, color=MUTED, linewidth=0.8, zorder=1)
        for value, at in ((low, 0.0), (high, 1.0)):
            axes.annotate(objective_text(value, percent), (last, at), (6, 0), textcoords="offset points", va="center",
                          fontsize=9, color=INK)  # fmt: skip
        axes.set_xticks(range(last + 1), [sanitize(d.name, 26).replace(".", "\n", 1) for d in space] + ["objective"])
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.set_yticks([])
        axes.set_xlim(-0.15, last + 0.45)
        axes.set_ylim(-0.08, 1.08)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        best = ", ".join(
            f"{d.name} {value_text(frame.loc[frame['trial'] == ranking.chosen, d.name].iloc[0])}" for d in space
        )
        return inline(figure, "coordinates", f"Parallel coordinates of {len(frame)} trials. Chosen: {best}.")


def mark_axis(axes: Any, place: int, dimension: Dimension, values: list[Any]) -> None:
    """Draw the axis of one setting with the values at its ends, or all of a few."""
    axes.axvline(place, color=MUTED, linewidth=0.8, zorder=1)
    value_at = {float(at): value for at, value in zip(scale_values(dimension, values), values, strict=True)}
    for height in sorted(value_at) if len(value_at) <= MAX_LABELS else [min(value_at), max(value_at)]:
        axes.annotate(
            value_text(value_at[height]),
            (place, height),
            (4, 3),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
            zorder=9,
        )


def importance_plot(frame: pd.DataFrame, space: list[Dimension]) -> Markup | None:
    """Draw the importance of each setting, or return None if it cannot be estimated."""
    if not space:
        return None
    x = np.stack([scale_values(d, frame[d.name].tolist()) for d in space], 1)
    importance = importances(x, frame["objective"].to_numpy(float))
    if importance is None:
        return None
    order = np.argsort(importance)
    with canvas(420, 60 + 24 * len(space)) as figure:
        axes = figure.add_subplot()
        axes.barh(range(len(space)), 100 * importance[order], height=0.6, color=FIRST)
        axes.set_yticks(range(len(space)), [sanitize(space[i].name, 40) for i in order])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel("importance (%)")
        axes.spines["left"].set_visible(False)
        alt = "Importance: " + ", ".join(f"{space[i].name} {100 * importance[i]:.0f} %" for i in order[::-1])
        return inline(figure, "importance", alt)
