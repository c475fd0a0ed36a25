"""Figures of the report: noise rates by class, a histogram of error probabilities, curves over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cleantune.report.svg import BAND, FIRST, INK, LINE, MUTED, PAPER, RIGHT, WRONG, canvas, inline, sanitize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

PEAK_FRACTION = 0.15
"""Fraction of the samples in one bin from which counts are drawn on a square-root axis."""


class ClassNoise(NamedTuple):
    """Noise rates of one class as fractions; `true_rate` is None if the true labels are unknown."""

    name: str
    estimated_rate: float
    true_rate: float | None
    size: float | None


class Line(NamedTuple):
    """Line of a plot over epochs."""

    name: str
    values: Sequence[float | None]
    color: str
    dashes: str = "-"


def noise_by_class(classes: Sequence[ClassNoise], overall: float | None, alt: str) -> Markup:
    """Draw bars of the estimated noise rate by class, and known true rates as diamonds."""
    with canvas(420, 58 + 18 * len(classes)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(classes))
        axes.barh(places, [100 * c.estimated_rate for c in classes], height=0.55, color=FIRST)
        true_rates = [(place, 100 * c.true_rate) for place, c in enumerate(classes) if c.true_rate is not None]
        if true_rates:
            rows, rates = zip(*true_rates, strict=True)
            axes.scatter(rates, rows, marker="D", s=34, color=WRONG, edgecolors=PAPER, linewidths=1, zorder=3)
        if overall is not None:
            axes.axvline(100 * overall, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.set_yticks(places, [sanitize(c.name, 24) for c in classes])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        top = max([c.estimated_rate for c in classes] + [c.true_rate or 0 for c in classes] + [overall or 0])
        axes.set_xlim(0, min(100, max(5, 108 * top)))
        axes.set_xlabel("noise rate (% of the class's given labels)")
        axes.set_ylabel("given class")
        axes.spines["left"].set_visible(False)
        return inline(figure, "noise", alt)


def probability_histogram(
    values: Array, wrong: Mask | None, threshold: float | None, name: str, alt: str
) -> Markup:
    """Draw a histogram of probabilities with a threshold.

    Args:
        values: Probabilities of a label error.
        wrong: Mask of the wrong labels; None if the true labels are unknown.
        threshold: Threshold of the label issues.
        name: Unique name on the page.
        alt: Description of the figure.
    """
    edges = np.linspace(0, 1, 41)
    with canvas(420, 262) as figure:
        axes = figure.add_subplot()
        counts = _stacked_histogram(axes, values, edges, wrong)
        root = _is_dominated(counts)
        if root:
            axes.set_yscale("function", functions=(_root, np.square))
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, counts.max(initial=1) * 1.08)
        axes.set_xlabel("probability of a label error")
        axes.set_ylabel("samples (root scale)" if root else "samples")
        _few_ticks(axes, counts.max(initial=1), root=root)
        return inline(figure, name, alt)


def over_epochs(
    lines: Sequence[Line],
    phases: Sequence[str],
    unit: str,
    name: str,
    alt: str,
    *,
    level: tuple[str, float] | None = None,
    axis: str = "epoch, over all phases",
) -> Markup:
    """Draw lines over the epochs of all phases, each labeled at its end; bands separate the phases.

    Phases before the first and after the last measurement are left out; epochs keep their numbers.

    Args:
        lines: Values by epoch; None for no measurement.
        phases: Phase of each epoch.
        unit: Name and unit of the y axis.
        name: Unique name on the page.
        alt: Description of the figure.
        level: Name and height of a horizontal reference line.
        axis: Name of the x axis.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas(420, 262) as figure:
        axes = figure.add_subplot()
        start, end = measured_phases([line.values for line in lines], phases)
        _mark_phases(axes, phases[start:end], start)
        ends = [(line.name, _draw_line(axes, line, start, end), line.color) for line in lines]
        if level is not None:
            axes.axhline(level[1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
            ends.append((level[0], level[1], MUTED))
        axes.margins(y=0.08)
        axes.set_xlim(start + 0.5, end + 0.5)
        if unit.startswith("samples"):
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)
            axes.yaxis.set_major_formatter("{x:,.6g}")
        _name_ends(axes, ends)
        axes.set(xlabel=axis, ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        return inline(figure, name, alt)


def _draw_line(axes: Axes, line: Line, start: int, end: int) -> float:
    """Draw the epochs from start to end, counted from 0, and return the last measured value."""
    values = np.array([np.nan if value is None else value for value in line.values[start:end]], dtype=float)
    measured = values[np.isfinite(values)]
    marker = "o" if len(measured) <= 12 else None
    axes.plot(np.arange(start + 1, end + 1), values, line.dashes, color=line.color, marker=marker, markersize=3.6)
    return float(measured[-1])


def measured_phases(lines: Sequence[Sequence[float | None]], phases: Sequence[str]) -> tuple[int, int]:
    """Return the first epoch and the end of the phases with a measurement, counted from 0."""
    measured = [i for i in range(len(phases)) if any(values[i] is not None for values in lines)]
    start, end = measured[0], measured[-1] + 1
    while start and phases[start - 1] == phases[start]:
        start -= 1
    while end < len(phases) and phases[end] == phases[end - 1]:
        end += 1
    return start, end


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart just enough for a gap between neighbors; keep their order and mean."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[float, int]] = []  # (center, members): touching neighbors move together
    for index in order:
        center, members = heights[index], 1
        while groups and groups[-1][0] + gap * (groups[-1][1] + members) / 2 > center:
            before, count = groups.pop()
            center, members = (before * count + center * members) / (count + members), count + members
        groups.append((center, members))
    places = [center + gap * (k - (members - 1) / 2) for center, members in groups for k in range(members)]
    moved = [0.0] * len(heights)
    for index, place in zip(order, places, strict=True):
        moved[index] = place
    return moved


def _stacked_histogram(axes: Axes, values: Array, edges: Array, wrong: Mask | None) -> NDArray[np.int64]:
    """Draw a histogram, correct labels in front of wrong ones, and return the counts of all."""
    counts = np.histogram(values, edges)[0]
    axes.stairs(counts, edges, fill=True, color=MUTED if wrong is None else WRONG, alpha=0.8)
    if wrong is not None:
        axes.stairs(np.histogram(values[~wrong], edges)[0], edges, fill=True, color=RIGHT)
    return counts


def _is_dominated(counts: NDArray[np.int64]) -> bool:
    return bool(counts.max(initial=0) > PEAK_FRACTION * counts.sum())


def _root(counts: Array) -> Array:
    return np.sqrt(np.maximum(counts, 0))  # matplotlib asks for margins below zero


def _few_ticks(axes: Axes, top: float, *, root: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if root:
        axes.set_yticks(root_ticks(top))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def root_ticks(top: float) -> list[float]:
    """Return ticks of a square-root axis up to `top`: one-digit numbers at similar distances that do not overlap."""
    ticks = [0.0]
    for step in (top * share**2 for share in (0.25, 0.5, 0.75, 1)):
        if step < 1:
            continue
        tick = step - step % 10 ** (len(str(int(step))) - 1)
        if len(ticks) > 1 and math.sqrt(tick) - math.sqrt(ticks[-1]) < 0.1 * math.sqrt(top):
            ticks.pop()
        ticks.append(tick)
    return ticks


def _mark_phases(axes: Axes, phases: Sequence[str], first: int) -> None:
    starts = [i for i, phase in enumerate(phases) if i == 0 or phases[i - 1] != phase]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(phases)], strict=True)):
        left, right = first + start + 0.5, first + end + 0.5
        if number % 2:
            axes.axvspan(left, right, color=BAND, linewidth=0)
        if number:
            axes.axvline(left, color=LINE, linewidth=0.8)
        axes.annotate(
            sanitize(phases[start], 16),
            ((left + right) / 2, 1),
            xytext=(0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            fontsize=9,
            fontstyle="italic",
        )


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write the name of each line at its last value, in its color, instead of a legend."""
    low, high = axes.get_ylim()
    fractions = spread([(height - low) / (high - low) for _, height, _ in ends], 0.075)
    for (name, _, color), fraction in zip(ends, fractions, strict=True):
        axes.annotate(
            sanitize(name, 30),
            (1, fraction),
            xytext=(6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
        )
