"""Draw the figures of a comparison: accuracy by noise, accuracy against cost, selection quality over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from cleantune.report.figures import spread
from cleantune.report.svg import (
    FIRST,
    INK,
    LINE,
    MUTED,
    RIGHT,
    SECOND,
    THIRD,
    WRONG,
    canvas,
    inline,
    label_log_axis,
    sanitize,
)
from cleantune.report.wording import display_method
from cleantune.studies.compare.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (MUTED, RIGHT, WRONG, INK, SECOND, THIRD)
"""Colors of the methods in their order; the methods that select come last and differ most."""
DEFAULT_METHOD = "robust"
"""Method that has the first color in every figure."""
MARKERS = {"LP": "o", "FFT": "s", "LP-FFT": "D"}
DASHES = {"LP": (0, (4, 2)), "FFT": "-", "LP-FFT": "-"}
MAX_NAME = 26
"""Characters of a name in a figure at most."""


class Point(NamedTuple):
    """A point of an entry: cost and accuracy."""

    name: str
    method: str
    tuning: str
    cost: float
    """Forward passes in multiples of the training split."""
    accuracy: float
    """Test accuracy in percent."""


class Curve(NamedTuple):
    """A quantity over an entry's epochs."""

    name: str
    method: str
    tuning: str
    progress: Sequence[float]
    """Finished part of the run's epochs in percent."""
    values: Sequence[float]


def colors_of(methods: Sequence[str]) -> dict[str, str]:
    """Return a color for each method, in their order."""
    others = [method for method in dict.fromkeys(methods) if method != DEFAULT_METHOD]
    return {DEFAULT_METHOD: FIRST} | {method: COLORS[k % len(COLORS)] for k, method in enumerate(others)}


def bars(scores: Sequence[Score], name: str, alt: str) -> Markup:
    """Draw the test accuracy of the selected models as bars with one standard error; the best and its ties in color."""
    finished = [s for s in scores if s.mean is not None and s.error is not None]
    with canvas(420, 62 + 20 * len(finished)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(finished))
        values = np.array([100 * (s.mean or 0.0) for s in finished])
        errors = np.array([100 * (s.error or 0.0) for s in finished])
        axes.barh(places, values, height=0.62, color=[FIRST if s.mark else LINE for s in finished])
        axes.errorbar(values, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axes.set_yticks(places, [sanitize(f"{display_method(s.entry)}, {s.tuning}", MAX_NAME) for s in finished])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(finished) - 0.4, -0.6)
        for place, value, error in zip(places, values, errors, strict=True):
            axes.annotate(f"{value:.1f}", (value + error, place), (4, 0), textcoords="offset points", va="center",
                          fontsize=9, color=MUTED)  # fmt: skip
        axes.set_xlim(0, min(112.0, 1.18 * float((values + errors).max())))
        axes.set_xlabel("test accuracy (%)")
        axes.spines["left"].set_visible(False)
        return inline(figure, name, alt)


def against_cost(points: Sequence[Point], unit: str, name: str, alt: str) -> Markup:
    """Draw accuracy over cost on a logarithmic axis, with the names of the points at the right."""
    with canvas(420, max(262, 60 + 17 * len(points))) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        colors = colors_of([p.method for p in points])
        for p in points:
            axes.plot(
                [p.cost], [p.accuracy], MARKERS.get(p.tuning, "o"), color=colors[p.method], markersize=6.5, zorder=3
            )
        axes.margins(y=0.1)
        low, high = min(p.cost for p in points), max(p.cost for p in points)
        axes.set_xlim(low / 1.35, max(high, 1.5 * low) * 1.35)
        name_points(axes, points, colors)
        label_log_axis(axes.xaxis, low, high)
        axes.set(xlabel=unit, ylabel="test accuracy (%)")
        return inline(figure, name, alt)


def name_points(axes: Axes, points: Sequence[Point], colors: Mapping[str, str]) -> None:
    """Write names in a column at the right without overlap, each joined to its point by a thin line."""
    low, high = axes.get_ylim()
    gap = 15.0 / max(200.0, 17.0 * len(points))
    heights = spread([(p.accuracy - low) / (high - low) for p in points], gap)
    shift = min(0.0, 1.0 - max(heights)) + max(0.0, -min(heights))
    for p, height in zip(points, heights, strict=True):
        axes.annotate(
            sanitize(f"{display_method(p.name)}, {p.tuning}", MAX_NAME),
            xy=(p.cost, p.accuracy),
            xycoords="data",
            xytext=(1.04, height + shift),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colors[p.method],
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )


def over_epochs(curves: Sequence[Curve], methods: Sequence[str], unit: str, name: str, alt: str) -> Markup:
    """Draw one quantity over the epochs of every entry that selects, with all runs scaled to one length."""
    with canvas(420, 262) as figure:
        axes = figure.add_subplot()
        colors, ends = colors_of(methods), []
        for curve in curves:
            color = colors[curve.method]
            marker = MARKERS.get(curve.tuning, "o") if len(curve.values) <= 12 else None
            axes.plot(curve.progress, curve.values, linestyle=DASHES.get(curve.tuning, "-"), color=color,
                      marker=marker, markersize=3.8)  # fmt: skip
            ends.append((f"{display_method(curve.name)}, {curve.tuning}", curve.values[-1], color))
        axes.margins(y=0.08)
        axes.set_xlim(0, 102)
        low, high = axes.get_ylim()
        heights = spread([(value - low) / (high - low) for _, value, _ in ends], 0.075)
        for (text, _, color), height in zip(ends, heights, strict=True):
            axes.annotate(sanitize(text, MAX_NAME), (1, height), (6, 0), xycoords="axes fraction",
                          textcoords="offset points", va="center", color=color, fontsize=9)  # fmt: skip
        axes.set(xlabel="finished epochs (% of the entry's epochs)", ylabel=unit)
        return inline(figure, name, alt)
