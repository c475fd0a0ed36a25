"""Make the tables of a transfer study in the shape of Tables 1 and 2 of arXiv:2309.17002."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cleantune.studies.transfer.study import Study

if TYPE_CHECKING:
    import pandas as pd

RUN = ["noise", "fraction", "model", "tuning", "model_seed", "seed"]
"""Columns that name one run: all names but task and domain."""
ROLES = {"id": "in domain", "ood": "out of domain"}


def means(frame: pd.DataFrame, column: str, role: str) -> pd.Series:
    """Return the mean of a column over the domains of each run; every task and domain has equal weight."""
    return frame[frame["role"] == role].groupby(RUN, sort=False)[column].mean()


def markdown(study: Study, frame: pd.DataFrame, failed: pd.DataFrame, figures: list[str]) -> str:
    """Return the summary: a table over all tasks, one by task, the failed cells and the figures.

    Args:
        study: The study.
        frame: Rows of finished cells.
        failed: Rows of failed cells.
        figures: Names of the figures.
    """
    num_done, num_cells = len(frame.groupby([*RUN, "task"])), len(study.cells())
    seeds = ", ".join(map(str, study.seeds))
    lines = [f"# {study.title}", ""]
    lines += [study.note, ""] if study.note else []
    lines += [
        f"{num_done} of {num_cells} cells. Means in %, with the standard deviation over runs (seeds {seeds};"
        " pre-trainings with one name together). F1 is the standard macro F1. SVE and LSVR are of the classifier's"
        " inputs (rows of length 1 without their own mean): SVE in domain, LSVR of the rows of the score.",
        "",
    ]
    for noise in study.noises:
        for fraction in study.fractions:
            part = frame[(frame["noise"] == noise) & (frame["fraction"] == fraction)]
            if not len(part):
                continue
            named = [] if noise == "none" else [f"labels {noise}"]
            named += [] if fraction == 1.0 else [f"{fraction:.0%} of the training rows"]
            lines += [f"## {', '.join(named) or 'All tasks'}", "", *overall(study, part), ""]
            lines += [*by_task(study, part), ""]
    if len(failed):
        names = ("model", "task", "tuning", "seed", "reason")
        lines += ["Failed:", ""]
        lines += [f"- {', '.join(str(row[name]) for name in names)}" for row in failed.to_dict("records")]
        lines.append("")
    lines += [f"![{name}]({name}.svg)\n" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def overall(study: Study, frame: pd.DataFrame) -> list[str]:
    """Return a row per model and tuning: score and F1 in and out of domain, SVE and LSVR."""
    ood = bool((frame["role"] == "ood").any())
    heads = ["model", "tuning", "runs", "in domain", "F1", "SVE"]
    heads += ["out of domain", "F1", "LSVR"] if ood else []
    lines = [_line(heads), _line(["---"] * len(heads))]
    wanted = [("score", "id", True), ("macro_f1", "id", True), ("sve", "id", False)]
    wanted += [("score", "ood", True), ("macro_f1", "ood", True), ("lsvr", "ood", False)] if ood else []
    by_run = {(column, role): means(frame, column, role) for column, role, _ in wanted if column in frame}
    for model in dict.fromkeys(one.name for one in study.models):
        for tuning in study.tunings:
            cells = []
            for column, role, percent in wanted:
                series = by_run.get((column, role))
                cells.append("–" if series is None else _of(series, model, tuning.name, percent))
            if any(cell != "–" for cell in cells):
                cells.insert(0, str(len(_runs(by_run["score", "id"], model, tuning.name))))
                lines.append(_line([model, tuning.name, *cells]))
    return lines


def by_task(study: Study, frame: pd.DataFrame) -> list[str]:
    """Return a row per model and tuning, with a column per task and domain."""
    columns = list(dict.fromkeys(zip(frame["task"], frame["domain"], frame["role"], strict=True)))
    lines = [_line(["model", "tuning", *(t if r == "id" else f"{t} → {d}" for t, d, r in columns)])]
    lines.append(_line(["---"] * (2 + len(columns))))
    for model in dict.fromkeys(one.name for one in study.models):
        for tuning in study.tunings:
            rows = frame[(frame["model"] == model) & (frame["tuning"] == tuning.name)]
            if len(rows):
                groups = rows.groupby(["task", "domain", "role"])["score"]
                lines.append(_line([model, tuning.name, *(_spread(groups.get_group(c), True) for c in columns)]))
    return lines


def _of(series: pd.Series, model: str, tuning: str, percent: bool) -> str:
    return _spread(_runs(series, model, tuning), percent)


def _runs(series: pd.Series, model: str, tuning: str) -> pd.Series:
    """Return the values of a model and tuning."""
    levels = series.index
    return series[(levels.get_level_values("model") == model) & (levels.get_level_values("tuning") == tuning)]


def _spread(values: pd.Series, percent: bool) -> str:
    values = values.dropna()
    if not len(values):
        return "–"
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    mean, spread = scale * values.mean(), scale * values.std()
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
