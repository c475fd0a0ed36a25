"""Report section on label errors: error probabilities with the threshold, and loss distributions with their mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.report import figures, tables
from cleantune.report.svg import Plot
from cleantune.storage.run_dir import RunDir

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 12
"""Number of classes with a histogram of their own."""
LOSSES = (("first", "first probe"), ("last", "end of the run"))
"""Suffix of a column of `losses.parquet`, and the time it was measured."""


def sections(run: RunDir) -> dict[str, Any]:
    """Return the template's variables on error probabilities and losses.

    Error probabilities (`p_wrong` of the label table) decide which labels are issues. Loss distributions follow if the
    run kept losses; their mixture is drawn if it was fitted.
    """
    return _probabilities(run) | _losses(run)


def _probabilities(run: RunDir) -> dict[str, Any]:
    labels = run.labels
    if "p_wrong" not in labels:
        return {"p_wrong": None, "threshold": None, "p_wrong_truth": False}
    labels = labels[np.isfinite(labels["p_wrong"].to_numpy(dtype=float))]
    values, issue = labels["p_wrong"].to_numpy(dtype=float), labels["is_label_issue"].to_numpy(dtype=bool)
    threshold = run.number("issues.threshold")
    if threshold is None and issue.any():
        threshold = float(values[issue].min())
    wrong = _wrong(labels)
    alt = f"Histogram of the error probability of {len(values)} labels; {int(issue.sum())} are label issues."
    svg = figures.probability_histogram(values, wrong, threshold, "p-wrong", alt)
    return {
        "p_wrong": Plot("Probability of a label error", svg),
        "threshold": threshold,
        "p_wrong_truth": wrong is not None,
    }


def _losses(run: RunDir) -> dict[str, Any]:
    parts: dict[str, Any] = {"losses": [], "losses_by_class": [], "losses_classes_note": "", "losses_truth": False}
    notes = parts["losses_notes"] = []
    if run.losses is None:
        return parts
    train = run.losses[run.losses["split"] == "train"]
    parts["losses_truth"] = "true_label" in train
    classes = run.classes
    if len(classes) > MAX_CLASSES:
        classes = ([c.name for c in tables.class_noise(run)] or classes)[:MAX_CLASSES]
        parts["losses_classes_note"] = f"The {len(classes)} noisiest of {len(run.classes)} classes are shown."
    for suffix, time in LOSSES:
        is_finite = np.isfinite(train[f"loss_{suffix}"].to_numpy(dtype=float))
        if not is_finite.all():
            notes.append(f"{int((~is_finite).sum())} losses ({time}) are not finite and left out.")
        if is_finite.any():
            table, mixtures = train[is_finite], (run.mixtures or {}).get(suffix) or {}
            plot, multiples = _plots(table, suffix, time, mixtures, run.classes, classes)
            parts["losses"].append(plot)
            parts["losses_by_class"].append(multiples)
    if not run.mixtures:
        notes.append("The run has no mixtures (artifacts/mixtures.json), so no curves are drawn.")
    return parts


def _plots(
    table: pd.DataFrame, suffix: str, time: str, mixtures: dict[str, Any], all_classes: list[str], classes: list[str]
) -> tuple[Plot, tuple[str, list[Plot]]]:
    """Return the histogram over all classes, and those of single classes under their heading."""
    losses = _select(table, suffix, mixtures, all_classes)
    root, title = figures.is_peaked(losses.values), f"{time[0].upper()}{time[1:]}"
    median = f"{np.median(losses.values):.2f}"
    alt = f"Histogram of {len(losses.values)} losses ({time}), median {median} nats, with the fitted mixture."
    svg = figures.loss_histogram(losses, f"loss-{suffix}", alt, root=root)
    small = []
    for index, name in enumerate(classes):
        part = _select(table[table["given_label"] == name], suffix, mixtures, [name])
        if len(part.values):
            alt = f"Losses of class {name} ({time})."
            svg_of_class = figures.loss_histogram(part, f"loss-{suffix}-{index}", alt, root=root, small=True)
            small.append(Plot(name, svg_of_class))
    scale = ", samples on a root scale" if root else ""
    return Plot(f"{title}, all classes", svg), (f"{title}, by class{scale}", small)


def _select(table: pd.DataFrame, suffix: str, mixtures: dict[str, Any], classes: list[str]) -> figures.Losses:
    sizes = table["given_label"].value_counts()
    fitted = [(int(sizes.get(name, 0)), mixtures[name]) for name in classes if isinstance(mixtures.get(name), dict)]
    return figures.Losses(table[f"loss_{suffix}"].to_numpy(dtype=float), _wrong(table), fitted)


def _wrong(table: pd.DataFrame) -> figures.Mask | None:
    """Return which given labels are wrong, None if true labels are unknown."""
    if "true_label" not in table:
        return None
    return (table["true_label"].notna() & (table["given_label"] != table["true_label"])).to_numpy(dtype=bool)
