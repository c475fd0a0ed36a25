"""Draw the figures of a block: ours against the paper's, sensitivity, cost, selection over epochs, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cleantune.report.svg import FIRST, LINE, MUTED, PAPER, SECOND, THIRD, Plot, canvas, inline, sanitize
from cleantune.studies.grid import DONE
from cleantune.studies.turn_paper.experiment import Experiment
from cleantune.studies.turn_paper.sheets import row_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLORS = (FIRST, SECOND, THIRD)
CLASS_COLORS = ("#4477aa", "#ee6677", "#228833", "#bba022", "#3399bb", "#aa3377", "#888888", "#dd8844", "#7766cc",
                 "#55aa99")  # fmt: skip
"""Ten colors that are distinct on light and dark backgrounds."""
MARKERS = "osD^vPXp<>"
MAX_LINES = 9
"""Lines of one figure of selections at most."""


def plots(experiment: Experiment, table: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return all figures for which a block has cells."""
    done = table[table["status"] == DONE]
    if not len(done):
        return []
    if experiment.analysis == "features":
        return features(records)
    out = []
    if experiment.block == "figure3":
        out += cost(done)
    out += sensitivity(experiment, done)
    out += against_paper(done)
    return out + selection(experiment, records)


def against_paper(done: pd.DataFrame) -> list[Plot]:
    """Plot our accuracy over the paper's, one point per cell; on the diagonal they agree."""
    printed = done[done["paper_last"].notna() & done["accuracy_last"].notna()]
    if len(printed) < 3:
        return []
    with canvas(420, 340) as figure:
        axes = figure.add_subplot()
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        kinds = [("TURN", printed["method"] == "turn", FIRST, "o"),
                 ("others, FFT", (printed["method"] != "turn") & (printed["scope"] == "all"), SECOND, "s"),
                 ("others, LP", (printed["method"] != "turn") & (printed["scope"] == "head"), THIRD, "^")]  # fmt: skip
        for name, chosen, color, marker in kinds:
            part = printed[chosen]
            if len(part):
                axes.scatter(part["paper_last"], 100 * part["accuracy_last"], s=26, color=color, marker=marker,
                             edgecolors=PAPER, linewidths=0.6, label=name)  # fmt: skip
        axes.set(xlabel="the paper's last test accuracy (%)", ylabel="ours (%)", xlim=(0, 100), ylim=(0, 100))
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        svg = inline(figure, "against", f"Our last accuracy over the paper's, {len(printed)} cells.")
    return [Plot("Ours against the paper", svg, "Last accuracy, one point per run; on the dashed line both agree.")]


def sensitivity(experiment: Experiment, done: pd.DataFrame) -> list[Plot]:
    """Plot last accuracy and purity over the values of each group of variants, with the paper's if printed."""
    places = {v.name: (v.group, v.x) for v in experiment.variants if v.group}
    out = []
    for group in dict.fromkeys(group for group, _ in places.values()):
        x = {name: place for name, (its_group, place) in places.items() if its_group == group}
        part = done[done["variant"].isin(list(x))]
        part = part.assign(x=part["variant"].map(x))
        if part["x"].nunique() < 2:
            continue
        out.append(_lines(part, group, "accuracy_last", "paper_last", "last test accuracy (%)"))
        if group == "tau" and part["purity"].notna().any():
            out.append(_lines(part, group, "purity", "paper_purity", "purity of the last selection (%)"))
    return out


def _lines(part: pd.DataFrame, group: str, ours: str, theirs: str, unit: str) -> Plot:
    name = f"{group}-{ours}".replace(" ", "-")
    printed = part[theirs].notna().any()
    with canvas(420, 262) as figure:
        axes = figure.add_subplot()
        for color, (noise, cells) in zip(COLORS, part.groupby("noise", sort=False), strict=False):
            mean = cells.groupby("x")[[ours, theirs]].mean()
            axes.plot(mean.index, 100 * mean[ours], color=color, marker="o", markersize=4, label=str(noise))
            if printed:
                axes.plot(mean.index, mean[theirs], "--", color=color, marker="D", markersize=3.6, linewidth=1.1)
        axes.set(xlabel=f"{group} {'' if group == 'tau' else '(number)'}".strip(), ylabel=unit)
        axes.margins(y=0.12)
        if part["noise"].nunique() > 1:
            axes.legend(frameon=False, fontsize=9)
        svg = inline(figure, name, f"{unit} over {group}.")
    note = "Solid: ours. Dashed: the paper." if printed else ""
    return Plot(f"{group.capitalize()}: {unit.rsplit(' (', 1)[0]}", svg, note)


def cost(done: pd.DataFrame) -> list[Plot]:
    """Plot accuracy against forward passes, with and without cached features, and against seconds."""
    methods = done[done["variant"] == ""]
    kinds = (
        ("forward_passes", "forward passes, features cached", "Cost with cached features"),
        ("forward_passes_uncached", "forward passes, no cache", "Cost without a cache"),
        ("seconds", "seconds", "Time"),
    )
    out = []
    for column, unit, title in kinds:
        part = methods[methods[column].notna() & methods["accuracy_last"].notna()]
        if part[column].nunique() > 1:
            note = (
                "A training step counts as three forward passes per sample; heads are not counted."
                if "forw" in column
                else ""
            )
            out.append(Plot(title, _scatter(part, column, unit), note))
    return out


def _scatter(part: pd.DataFrame, column: str, unit: str) -> Markup:
    rows = part.assign(label=[row_label(row) for row in part.itertuples()])
    with canvas(420, 330) as figure:
        axes = figure.add_subplot()
        for k, (label, cells) in enumerate(rows.groupby("label", sort=False)):
            turn, head = (cells["method"] == "turn").any(), (cells["scope"] == "head").all()
            color = FIRST if turn else THIRD if head else SECOND
            axes.scatter(cells[column].mean(), 100 * cells["accuracy_last"].mean(), s=44, color=color, label=label,
                         marker=MARKERS[k % 10], edgecolors=PAPER, linewidths=0.6, zorder=3)  # fmt: skip
        axes.margins(x=0.08, y=0.12)
        axes.set(xlabel=unit, ylabel="last test accuracy (%)", xlim=(-0.04 * part[column].max(), None))
        axes.xaxis.set_major_formatter("{x:,.6g}")
        axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        return inline(figure, f"cost-{column}", f"Last accuracy against {unit}.")


def selection(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plot purity and recall of each selection by noise and group of variants, one line per run of the first seed."""
    groups = {v.name: v.group for v in experiment.variants}
    panels: dict[tuple[str, ...], list[tuple[str, Sequence[Mapping[str, Any]]]]] = {}
    for one in records:
        measured = [r for r in one["rows"] if r.get("selected") is not None and r.get("purity") is not None]
        if len(measured) < 2 or one["method"] != "turn" or one["seed"] != experiment.seeds[0]:
            continue
        group = groups.get(one["variant"], "")
        several = [one["model"]] if len(experiment.models) > 1 else []
        name = ", ".join([*several, *([one["variant"]] if one["variant"] else [])]) or "TURN"
        panels.setdefault((one["data"], one["noise"], group), []).append((name, measured))
    out = []
    for number, ((_, noise, group), lines) in enumerate(panels.items()):
        about = ", ".join(part for part in (noise, group) if part and part != "none")
        for which in ("purity", "recall"):
            title = f"{which.capitalize()} of each selection, {about}"
            svg = _over_selections(lines[:MAX_LINES], which, f"selection-{number}-{which}", title)
            left = f"The first {MAX_LINES} of {len(lines)} runs." if len(lines) > MAX_LINES else ""
            out.append(Plot(title, svg, left))
    return out


def _over_selections(
    lines: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], which: str, name: str, alt: str
) -> Markup:
    with canvas(420, 290) as figure:
        axes = figure.add_subplot()
        for j, (label, rows) in enumerate(lines):
            y = [100 * row[which] for row in rows]
            axes.plot(range(1, len(y) + 1), y, ("-", "--", ":")[j // 3], color=COLORS[j % 3], marker="o",
                      markersize=3.6, linewidth=1.3, label=sanitize(label, 48))  # fmt: skip
        axes.set(xlabel="selection", ylabel=f"{which} (%)")
        axes.margins(y=0.1)
        _whole_ticks(axes)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16),
                        ncols=1 if max(len(label) for label, _ in lines) > 24 else 3)  # fmt: skip
        return inline(figure, name, alt)


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def features(records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plot for each model the features before training and after each noise, by t-SNE with the same images and seed."""
    out = []
    shown = [one for one in records if one.get("points") and one["seed"] == records[0]["seed"]]
    for model in dict.fromkeys(one["model"] for one in shown):
        cells = [one for one in shown if one["model"] == model]
        panels = [("untouched", cells[0]["points"]["before"], cells[0], "untouched_")]
        panels += [(f"after {one['noise']}", one["points"]["after"], one, "") for one in cells]
        for k, (title, points, one, prefix) in enumerate(panels):
            measures = (f"CKA {one[prefix + 'cka']:.2f}, 20-NN {one[prefix + 'neighbors']:.1%}, silhouette "
                    f"{one[prefix + 'silhouette']:.2f}, linear probe {one[prefix + 'probe']:.1%}.")  # fmt: skip
            name = f"tsne-{list(dict.fromkeys(r['model'] for r in shown)).index(model)}-{k}"
            svg = points_figure(np.array(points), cells[0]["points"]["class"], name, f"{model}, {title}: {measures}")
            out.append(Plot(f"{model}, {title}", svg, measures))
    return out


def points_figure(points: np.ndarray, classes: Sequence[str], name: str, alt: str) -> Markup:
    """Plot points in the plane, colored by class, with the classes named below."""
    with canvas(300, 330) as figure:
        axes = figure.add_subplot()
        for k, label in enumerate(dict.fromkeys(sorted(classes))):
            of_class = np.array([c == label for c in classes])
            axes.scatter(points[of_class, 0], points[of_class, 1], s=9, color=CLASS_COLORS[k % 10], linewidths=0,
                         marker=MARKERS[k // 10 % 10], label=sanitize(label, 14))  # fmt: skip
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        for side in axes.spines.values():
            side.set(visible=True, color=LINE)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.09),
                    handletextpad=0.1, columnspacing=0.8)  # fmt: skip
        return inline(figure, name, alt)
