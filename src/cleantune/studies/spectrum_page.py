"""Build the page of spectra: a table, and singular values in rank bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from cleantune.functional.spectrum import BANDS, SpectrumResult
from cleantune.report.svg import (
    FIRST,
    INK,
    MUTED,
    RIGHT,
    SECOND,
    THIRD,
    WRONG,
    Plot,
    canvas,
    inline,
    label_log_axis,
    sanitize,
)
from cleantune.report.templates import render_page
from cleantune.utils.format import decimal, percent

LINES = [(color, dashes) for dashes in ("-", "--", ":") for color in (FIRST, SECOND, THIRD, INK, WRONG, RIGHT, MUTED)]
"""Colors and dashes of the models, in order."""


def build(results: Sequence[SpectrumResult], preset: str, split: str) -> str:
    """Return the page of spectra as HTML.

    Args:
        results: Spectra; those of one data set share a figure.
        preset: Name of the preprocessing of features.
        split: Split of the data.
    """
    names = list(dict.fromkeys(r.data for r in results))
    plots = [Plot(name, bands([r for r in results if r.data == name], f"bands-{k}")) for k, name in enumerate(names)]
    parts = {
        "names": names, "results": results, "preset": preset, "split": split, "conclusions": conclusions(results),
        "plots": plots,
    }  # fmt: skip
    return render_page("cleantune.studies", "spectrum.html", parts)


def conclusions(results: Sequence[SpectrumResult]) -> list[str]:
    """Return one sentence per data set: the most evenly spread features, and the strongest dominant direction."""
    out = []
    for name in dict.fromkeys(r.data for r in results):
        of_data = [r for r in results if r.data == name]
        even, strong = max(of_data, key=lambda r: r.spectrum.sve), max(of_data, key=lambda r: r.spectrum.dominant_share)
        if len(of_data) == 1:
            out.append(f"{name}, {even.model}: SVE {decimal(even.spectrum.sve)}, LSVR {decimal(even.spectrum.lsvr)}.")
            continue
        out.append(
            f"{name}: {even.model} has the highest entropy (SVE {decimal(even.spectrum.sve)}), {strong.model} the"
            f" strongest dominant direction ({percent(strong.spectrum.dominant_share)} of the sum, LSVR"
            f" {decimal(strong.spectrum.lsvr)})."
        )
    return out


def bands(results: Sequence[SpectrumResult], name: str) -> Markup:
    """Draw singular values over rank, on a log scale, in the bands of the paper's figures: 0 to 20, to 500, the rest.

    Values are shares of the sum, so that features of different scale are comparable.
    """
    from matplotlib.ticker import MaxNLocator

    longest = max(len(r.spectrum.values) for r in results)
    starts = [a for a in BANDS if a < longest]
    with canvas(300 * len(starts), 230 + 14 * len(results)) as figure:
        for k, axes in enumerate(figure.subplots(1, len(starts), squeeze=False)[0]):
            end = starts[k + 1] if k + 1 < len(starts) else longest
            for (color, dashes), r in zip(_styles(len(results)), results, strict=True):
                p = r.spectrum.shares[starts[k] : end]
                rank = np.arange(starts[k], starts[k] + len(p))
                axes.plot(rank[p > 0], 100 * p[p > 0], dashes, color=color, label=sanitize(r.model, 40))
            axes.set_yscale("log")
            label_log_axis(axes.yaxis, *axes.get_ylim())
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_xlim(starts[k], max(end - 1, starts[k] + 1))
            axes.set_xlabel(f"rank, {starts[k]} to {end - 1}")
            axes.set_ylabel("share of the sum (%)" if k == 0 else "")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=1)
        ends = "; ".join(f"{r.model}: SVE {r.spectrum.sve:.3f}, LSVR {r.spectrum.lsvr:.3f}" for r in results)
        return inline(figure, name, f"Singular values over rank. {ends}.")


def _styles(count: int) -> list[Any]:
    return [LINES[k % len(LINES)] for k in range(count)]
