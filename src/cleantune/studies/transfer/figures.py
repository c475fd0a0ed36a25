"""Draw the figures of a transfer study in the shape of Figures 1, 3 and 5 of arXiv:2309.17002, as SVG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.report.svg import BAND, FIRST, INK, LINE, MUTED, PAPER, RIGHT, SECOND, THIRD, WRONG, canvas, sanitize
from cleantune.studies.transfer.study import Study
from cleantune.studies.transfer.table import ROLES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLORS = {
    PAPER: "#ffffff", INK: "#1c1c1c", MUTED: "#555555", LINE: "#b8b8b8", BAND: "#eeeeee", RIGHT: "#228833",
    WRONG: "#cc3311", FIRST: "#4477aa", SECOND: "#ee7733", THIRD: "#aa3377",
}  # fmt: skip
"""Colors of the placeholders, since a file has no page that defines them."""
SERIES = (FIRST, SECOND, THIRD, RIGHT, WRONG, INK)
MARKERS = "os^DvP"


def figures(study: Study, frame: pd.DataFrame) -> dict[str, str]:
    """Return figures by name, if there are several rates of noise in the pre-training; downstream labels are clean."""
    clean = frame[(frame["gamma"] >= 0) & (frame["noise"] == "none") & (frame["fraction"] == 1.0)]
    if clean["gamma"].nunique() < 3:
        return {}
    out = {"figure-1-score": against_gamma(clean, "score", "Score and noise in the pre-training", 100.0, "score (%)")}
    first = study.tunings[0].name
    if (clean["role"] == "ood").any():
        out["figure-3-spectrum"] = scatter(clean[clean["tuning"] == first], first)
    out["figure-5-spectrum"] = spectra(clean)
    return out


def against_gamma(frame: pd.DataFrame, column: str, title: str, scale: float, unit: str) -> str:
    """Plot a line per tuning over the rate of noise, a panel per role; bars are standard deviations over runs."""
    roles = [role for role in ROLES if (frame["role"] == role).any()]
    with canvas(330 * len(roles), 290) as figure:
        figure.suptitle(title, fontsize=11, color=INK)
        for axes, role in zip(figure.subplots(1, len(roles), squeeze=False)[0], roles, strict=True):
            _lines(axes, frame[frame["role"] == role], column, scale)
            axes.set(title=ROLES[role], xlabel="wrong labels in the pre-training (%)", ylabel=unit)
        _legend(figure)
        return to_svg(figure)


def spectra(frame: pd.DataFrame) -> str:
    """Plot SVE in domain and LSVR out of domain over the rate of noise, a line per tuning."""
    panels = [("id", "sve", "SVE, in domain"), ("ood", "lsvr", "LSVR, out of domain")]
    panels = [one for one in panels if (frame["role"] == one[0]).any()]
    with canvas(330 * len(panels), 290) as figure:
        figure.suptitle("Spectrum of the classifier's inputs", fontsize=11, color=INK)
        for axes, (role, column, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _lines(axes, frame[frame["role"] == role], column, 1.0)
            axes.set(title=title, xlabel="wrong labels in the pre-training (%)", ylabel=f"{column.upper()} (nats)")
        _legend(figure)
        return to_svg(figure)


def scatter(frame: pd.DataFrame, tuning: str) -> str:
    """Plot score over SVE (in domain) and LSVR (out of domain): a point per domain, a color per rate of noise."""
    with canvas(690, 300) as figure:
        figure.suptitle(f"Score and spectrum, {sanitize(tuning, 40)}", fontsize=11, color=INK)
        panels = zip(figure.subplots(1, 2), (("id", "sve"), ("ood", "lsvr")), strict=True)
        for axes, (role, column) in panels:
            keys = ["gamma", "task", "domain"]
            part = frame[frame["role"] == role].groupby(keys)[["score", column]].mean().reset_index()
            for k, gamma in enumerate(sorted(part["gamma"].unique())):
                of_gamma = part[part["gamma"] == gamma]
                axes.scatter(of_gamma[column], 100 * of_gamma["score"], s=26, color=SERIES[k % len(SERIES)],
                             marker=MARKERS[k % len(MARKERS)], label=f"{100 * gamma:g} % wrong")  # fmt: skip
            axes.set(title=ROLES[role], xlabel=f"{column.upper()} (nats)", ylabel="score (%)")
        _legend(figure)
        return to_svg(figure)


def _lines(axes: Any, frame: pd.DataFrame, column: str, scale: float) -> None:
    runs = frame.groupby(["tuning", "gamma", "model_seed", "seed"], sort=False)[column].mean().reset_index()
    for k, (tuning, part) in enumerate(runs.groupby("tuning", sort=False)):
        points = part.groupby("gamma")[column].agg(["mean", "std"]).reset_index()
        axes.errorbar(100 * points["gamma"], scale * points["mean"], yerr=scale * np.nan_to_num(points["std"]),
                      color=SERIES[k % len(SERIES)], marker=MARKERS[k % len(MARKERS)], markersize=4, capsize=2,
                      elinewidth=0.8, label=sanitize(tuning, 40))  # fmt: skip


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=min(5, len(labels)))


def to_svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file on white."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor=PAPER, metadata={"Date": None})
    text = buffer.getvalue()
    for color, value in COLORS.items():
        text = text.replace(color, value)
    return text
