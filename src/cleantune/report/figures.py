"""The report's figures: loss histograms with their mixtures, noise by class, curves over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cleantune.report.svg import BAND, FIRST, INK, LINE, MUTED, PAPER, RIGHT, WRONG, canvas, inline, sanitize
from cleantune.storage.readers import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
FEWEST_BINS, MOST_BINS = 12, 48
SMALL = (204, 150)
"""Width and height of one histogram of many; there may be dozens, and each with the same labels at its axes."""


class ClassNoise(NamedTuple):
    """The noise of one class, as shares; `true_rate` is None where truth is not known."""

    name: str
    estimated_rate: float
    true_rate: float | None
    size: float | None


class Line(NamedTuple):
    """One line of a plot over epochs."""

    name: str
    values: Sequence[float | None]
    color: str
    dashes: str = "-"


class Losses(NamedTuple):
    """The losses of one look, in nats, with what is known about the labels."""

    values: Array
    wrong: NDArray[np.bool_] | None
    """Which labels are wrong; None where truth is not known."""
    parts: Sequence[tuple[int, Mapping[str, Any]]]
    """(samples, mixture) of every class that had one fitted."""


def noise_by_class(classes: Sequence[ClassNoise], overall: float | None, alt: str) -> Markup:
    """Horizontal bars of the estimated noise rate of each class, true rates as diamonds where known."""
    with canvas(420, 58 + 18 * len(classes)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(classes))
        axes.barh(places, [100 * c.estimated_rate for c in classes], height=0.55, color=FIRST)
        known = [(place, 100 * c.true_rate) for place, c in enumerate(classes) if c.true_rate is not None]
        if known:
            rows, rates = zip(*known, strict=True)
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


def loss_histogram(losses: Losses, name: str, alt: str, *, root: bool = False, small: bool = False) -> Markup:
    """Histogram of losses with the counts that the fitted mixture expects in the same bins.

    The mixture is integrated over each bin, so that a component narrower than a bin is drawn as high as its count.

    Args:
        losses: Finite losses with their mixtures.
        name: Unique on the page.
        alt: What the figure shows.
        root: Counts on a square-root axis, on which bars and curve differ evenly by chance, and small bars beside a
            tall one stay visible.
        small: One of many.

    Source: the square-root axis is Tukey's rootogram (Exploratory Data Analysis, 1977).
    """
    edges = bin_edges(losses.values)
    values = np.clip(losses.values, edges[0], edges[-1])
    counts = np.histogram(values, edges)[0]
    with canvas(*(SMALL if small else (420, 262)), constrained=not small) as figure:
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=MUTED if losses.wrong is None else WRONG, alpha=0.8)
        if losses.wrong is not None:
            axes.stairs(np.histogram(values[~losses.wrong], edges)[0], edges, fill=True, color=RIGHT)
        middle = (edges[1:] + edges[:-1]) / 2
        for component, dashes in (("low", "-"), ("high", "--")):
            expected = expected_counts(losses.parts, component, edges)
            if expected.any():
                axes.plot(middle, expected, dashes, color=INK, linewidth=1.0 if small else 1.3)
        if root:
            axes.set_yscale("function", functions=(_root, np.square))
        axes.set_ylim(0, counts.max(initial=1) * 1.08)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("loss (nats)")
        axes.set_ylabel("samples (root scale)" if root and not small else "samples")
        _few_ticks(axes, counts.max(initial=1), root=root)
        if small:
            left, right, bottom, top = 26 + 5.8 * len(f"{counts.max(initial=1):,.0f}"), 9, 37, 7
            width, height = SMALL
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        return inline(figure, name, alt)


def peaked(values: Array) -> bool:
    """Whether one bin of the histogram holds so many samples that the others would not be seen beside it."""
    counts = np.histogram(np.clip(values, *bin_edges(values)[[0, -1]]), bin_edges(values))[0]
    return bool(counts.max(initial=0) > 0.15 * counts.sum())


def bin_edges(values: Array) -> Array:
    """Edges of equal bins over the losses, 2 n^(1/3) of them (Rice's rule) within limits.

    The highest 0.5 % of the losses share the last bin, so that one outlier costs no detail.
    """
    low = min(0.0, float(values.min(initial=0.0)))
    high = float(np.quantile(values, 0.995)) if len(values) else 1.0
    if not high - low > 1e-9:
        high = low + 1.0
    bins = int(np.clip(2 * np.cbrt(len(values)), FEWEST_BINS, MOST_BINS))
    return np.linspace(low, high, bins + 1)


def expected_counts(parts: Sequence[tuple[int, Mapping[str, Any]]], component: str, edges: Array) -> Array:
    """Samples that one component of all classes' mixtures together expects in each bin.

    Args:
        parts: (samples, mixture) of each class; a mixture holds `low` and `high` with mean, std (nats) and weight.
        component: `low` or `high`.
        edges: Edges of the bins, the last bin taken as open to the right.
    """
    total = np.zeros(len(edges) - 1)
    for size, mixture in parts:
        normal = mixture.get(component)
        if not isinstance(normal, Mapping):
            continue
        mean, std, weight = (finite(normal.get(key)) for key in ("mean", "std", "weight"))
        if mean is None or std is None or weight is None:
            continue
        below = [_normal_cdf((edge - mean) / max(std, 1e-9)) for edge in edges[:-1]]
        total += size * weight * np.diff([*below, 1.0])
    return total


def over_epochs(
    lines: Sequence[Line],
    phases: Sequence[str],
    unit: str,
    name: str,
    alt: str,
    *,
    level: tuple[str, float] | None = None,
    axis: str = "epoch, counted over all phases",
) -> Markup:
    """Lines over the epochs of all phases, each named at its end, phases set apart by a band.

    Phases before the first and after the last measurement are left out; epochs keep their numbers.

    Args:
        lines: Values by epoch; None where there was no measurement.
        phases: The phase of each epoch.
        unit: Name and unit of the y axis.
        name: Unique on the page.
        alt: What it shows.
        level: Name and height of a horizontal line to compare with.
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
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter("{x:,.6g}")
        _name_ends(axes, ends)
        axes.set(xlabel=axis, ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        return inline(figure, name, alt)


def _draw_line(axes: Axes, line: Line, start: int, end: int) -> float:
    """Draw the epochs from start to end, counted from 0; the last value that was measured."""
    values = np.array([np.nan if value is None else value for value in line.values[start:end]], dtype=float)
    measured = values[np.isfinite(values)]
    marker = "o" if len(measured) <= 12 else None
    axes.plot(np.arange(start + 1, end + 1), values, line.dashes, color=line.color, marker=marker, markersize=3.6)
    return float(measured[-1])


def measured_phases(lines: Sequence[Sequence[float | None]], phases: Sequence[str]) -> tuple[int, int]:
    """First epoch and end of the phases that hold a measurement, counted from 0."""
    measured = [i for i in range(len(phases)) if any(values[i] is not None for values in lines)]
    start, end = measured[0], measured[-1] + 1
    while start and phases[start - 1] == phases[start]:
        start -= 1
    while end < len(phases) and phases[end] == phases[end - 1]:
        end += 1
    return start, end


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved apart as little as it takes to keep a gap between neighbors, order kept."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[float, int]] = []  # (center, members): neighbors that touch move as one
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


def _normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def _root(counts: Array) -> Array:
    return np.sqrt(np.maximum(counts, 0))  # matplotlib asks for margins below zero too


def _few_ticks(axes: Axes, top: float, *, root: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if root:
        axes.set_yticks(root_ticks(top))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def root_ticks(top: float) -> list[float]:
    """Ticks of a square-root axis up to `top`, at about even heights: numbers of one digit, none on its neighbor."""
    ticks = [0.0]
    for step in (top * share**2 for share in (0.25, 0.5, 0.75, 1)):
        if step < 1:
            continue
        tick = step - step % 10 ** int(math.log10(step))
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
    """Write each line's name beside its last value, in its color, so that no legend has to be looked up."""
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
