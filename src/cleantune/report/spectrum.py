"""The page of a study of spectra: the table, and the singular values in rank bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cleantune.functional.spectrum import BANDS
from cleantune.report.svg import (
    FIRST,
    INK,
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
from cleantune.report.templates import render_page
from cleantune.utils import format as fmt

if TYPE_CHECKING:
    from cleantune.studies.spectrum import SpectrumResult

LINES = [(color, dashes) for dashes in ("-", "--", ":") for color in (FIRST, SECOND, THIRD, INK, WRONG, RIGHT, MUTED)]
"""Colors and dashes of models, in their order."""


def build(found: Sequence[SpectrumResult], preset: str, split: str) -> str:
    """The page as HTML.

    Args:
        found: Spectra; those of one data set stand in one figure.
        preset: What was done to the features, for the words.
        split: Whose features, for the words.
    """
    names = list(dict.fromkeys(f.data for f in found))
    figures = [
        {"title": name, "svg": bands([f for f in found if f.data == name], f"bands-{k}")}
        for k, name in enumerate(names)
    ]
    parts = {"found": found, "figures": figures, "preset": preset, "split": split, "names": names}
    return render_page("cleantune.report", "spectrum.html", parts | {"verdict": verdict(found)})


def verdict(found: Sequence[SpectrumResult]) -> list[str]:
    """For each data set, which features are spread the most, and which have the strongest direction."""
    said = []
    for name in dict.fromkeys(f.data for f in found):
        here = [f for f in found if f.data == name]
        spread, strong = max(here, key=lambda f: f.spectrum.sve), max(here, key=lambda f: f.spectrum.dominant_share)
        said.append(
            f"{name}: the features of {spread.model} are spread the most (SVE {spread.spectrum.sve:.3f}),"
            f" those of {strong.model} have the strongest direction ({fmt.percent(strong.spectrum.dominant_share)}"
            f" of the sum, LSVR {strong.spectrum.lsvr:.3f})."
            if len(here) > 1
            else f"{name}, {spread.model}: SVE {spread.spectrum.sve:.3f}, LSVR {spread.spectrum.lsvr:.3f}."
        )
    return said


def bands(found: Sequence[SpectrumResult], name: str) -> Markup:
    """Singular values over rank, logarithmic, in the bands of the paper's figures: 0 to 20, to 500, and the rest.

    Values are shares of the sum, so that features of different scale can stand in one figure.
    """
    from matplotlib.ticker import MaxNLocator

    longest = max(len(f.spectrum.values) for f in found)
    starts = [a for a in BANDS if a < longest]
    with canvas(300 * len(starts), 230 + 14 * len(found)) as figure:
        for k, axes in enumerate(figure.subplots(1, len(starts), squeeze=False)[0]):
            end = starts[k + 1] if k + 1 < len(starts) else longest
            for (color, dashes), f in zip(_styles(len(found)), found, strict=True):
                p = f.spectrum.shares[starts[k] : end]
                rank = np.arange(starts[k], starts[k] + len(p))
                axes.plot(rank[p > 0], 100 * p[p > 0], dashes, color=color, label=sanitize(f.model, 40))
            axes.set_yscale("log")
            label_log_axis(axes.yaxis, *axes.get_ylim())
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_xlim(starts[k], max(end - 1, starts[k] + 1))
            axes.set_xlabel(f"rank, {starts[k]} to {end - 1}")
            axes.set_ylabel("share of the sum (%)" if k == 0 else "")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=1)
        ends = "; ".join(f"{f.model}: SVE {f.spectrum.sve:.3f}, LSVR {f.spectrum.lsvr:.3f}" for f in found)
        return inline(figure, name, f"Singular values over rank. {ends}.")


def _styles(count: int) -> list[Any]:
    return [LINES[k % len(LINES)] for k in range(count)]
