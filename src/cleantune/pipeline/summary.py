"""The summary of a run: summary.json, the numbers that other programs read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cleantune.data import Data
from cleantune.functional import metrics
from cleantune.methods.protocol import EpochMetrics
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.label_table import LABELED_SPLITS, Verdict
from cleantune.pipeline.record import versions
from cleantune.utils.malloc import peak_bytes

SMALL_CLASS = 10
"""Training samples below which a class gets a warning."""
SMALL_VALIDATION = 100
"""Validation samples below which the split gets a warning."""


def make_summary(finished: FinishedRun, scores: Verdict, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """Return the table of summary.json.

    Args:
        finished: Trained run.
        scores: Scores of the labels of train and validation.
        predictions: Probabilities [N, C] of the selected model by split.
    """
    config, inputs, data = finished.config, finished.inputs, finished.inputs.data
    baseline = finished.baseline
    sizes = {s: len(data.rows[s]) if s in data.rows else 0 for s in ("train", "validation", "test", "unlabeled")}
    return {
        "method": config.name,
        "scope": config.method.scope,
        "preset": config.preset,
        "seed": config.run.train_seed,
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "kind": data.kind,
        "model": describe_model(inputs),
        "samples": sizes | {"unreadable": len(inputs.unreadable)},
        "accuracy": measure_accuracy(finished, predictions),
        "balanced_accuracy": measure_splits(metrics.balanced_accuracy, data, predictions),
        "selected_model": finished.selected_model.phase,
        "selection_reason": finished.selected_model.reason,
        "baseline": {"name": "CE linear probe", "accuracy": baseline.accuracy, "seconds": baseline.seconds},
        "noise": summarize_noise(finished, scores),
        "issues": measure_issues(data, scores),
        "selection": measure_selection(finished.metrics, data),
        "cost": summarize_cost(finished),
        "compute": inputs.compute.to_dict(),
        "log": list(data.notes),
        "warnings": find_warnings(finished),
        "versions": versions(),
    }


def describe_model(inputs: RunInputs) -> dict[str, Any] | None:
    """Describe the backbone; None where the data are features."""
    backbone = inputs.backbone
    if backbone is None:
        return None
    return {
        "name": backbone.source,
        "architecture": backbone.architecture.model_type,
        "feature": backbone.feature,
        "width": backbone.width,
        "parameters": backbone.num_parameters,
        "fingerprint": backbone.fingerprint,
    }


def measure_accuracy(finished: FinishedRun, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """Measure the selected model on test and validation (given labels), and report the epochs before it.

    `best_validation` is the test accuracy of the epoch of the last phase with the best validation accuracy,
    `last_epoch` that of the last epoch, and `by_phase` has the accuracies at the end of each phase.
    """
    rows = finished.metrics
    last_phase = [row for row in rows if row["round"] == rows[-1]["round"]]
    best = max(last_phase, key=lambda row: row["accuracy_validation"] or 0.0)
    return measure_splits(metrics.accuracy, finished.inputs.data, predictions) | {
        "best_validation": best["accuracy_test"],
        "last_epoch": rows[-1]["accuracy_test"],
        "by_phase": {
            name: {"test": row["accuracy_test"], "validation": row["accuracy_validation"]}
            for name, row in last_rows(rows).items()
        },
    }


def measure_splits(
    measure: Callable[[np.ndarray, np.ndarray], float | None], data: Data, predictions: dict[str, Tensor]
) -> dict[str, float | None]:
    """Measure the predictions on test and on validation (given labels); None where there is no such split."""
    return {
        split: measure(predictions[split].argmax(1).numpy(), data.rows[split].y) if split in predictions else None
        for split in ("test", "validation")
    }


def last_rows(rows: list[EpochMetrics]) -> dict[str, EpochMetrics]:
    """Return the last row of the first probe, of fine-tuning, and of the probe after it (`reprobe`)."""
    last: dict[str, EpochMetrics] = {}
    for row in rows:
        name = "reprobe" if row["phase"] == "probe" and "tune" in last else row["phase"]
        last[name] = row
    return last


def true_labels(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return given labels, true labels, and a mask of the known true labels, of train and validation.

    Returns:
        Three arrays [N], or None where no true label is known.
    """
    splits = [s for s in LABELED_SPLITS if s in data.rows]
    if not any(s in data.truth for s in splits):
        return None
    y = np.concatenate([data.rows[s].y for s in splits])
    true_y = np.concatenate([data.truth.get(s, np.full(len(data.rows[s]), -1)) for s in splits])
    return y, true_y, true_y >= 0


def summarize_noise(finished: FinishedRun, scores: Verdict) -> dict[str, Any]:
    """Summarize estimated and, where known, true noise rates, in total and by class."""
    data = finished.inputs.data
    y = np.concatenate([data.rows[s].y for s in LABELED_SPLITS if s in data.rows])
    truth = true_labels(data)
    per_class = {}
    for c, name in enumerate(data.classes):
        per_class[name] = {"estimated_rate": float(scores.rate_by_class[c]), "size": int((y == c).sum())}
        if truth is not None and (known := (y == c) & truth[2]).any():
            per_class[name]["true_rate"] = float((truth[1] != y)[known].mean())
    noise: dict[str, Any] = {"estimated_rate": scores.estimated_rate, "per_class": per_class}
    if truth is not None:
        noise["true_rate"] = float((truth[1] != y)[truth[2]].mean())
    if finished.noise is not None:
        noise["injected"] = finished.noise
    return noise


def measure_issues(data: Data, scores: Verdict) -> dict[str, Any]:
    """Count the labels that are listed as wrong and, where true labels are known, measure the list."""
    is_issue = scores.issue.numpy()
    issues: dict[str, Any] = {"count": int(is_issue.sum())}
    truth = true_labels(data)
    if truth is None:
        return issues
    y, true_y, known = truth
    is_right, is_issue, suggested = (true_y == y)[known], is_issue[known], scores.suggested.numpy()[known]
    hits = int((is_issue & ~is_right).sum())
    issues["auroc"] = metrics.auroc(scores.score.double().numpy()[known], is_right)
    issues["precision"] = hits / int(is_issue.sum()) if is_issue.any() else None
    issues["recall"] = hits / int((~is_right).sum()) if (~is_right).any() else None
    issues["suggestion_accuracy"] = metrics.accuracy(suggested[~is_right], true_y[known][~is_right])
    return issues


def measure_selection(rows: list[EpochMetrics], data: Data) -> dict[str, Any]:
    """Return size and quality of the last sample selection; a method without one selects the whole training split."""
    last = next((row for row in reversed(rows) if row.get("selected") is not None), None)
    if last is not None:
        return {"size": last["selected"], **{key: last.get(key) for key in ("purity", "recall", "auroc")}}
    size, true_y = len(data.rows["train"]), data.truth.get("train")
    if true_y is None:
        return {"size": size}
    is_right = (true_y == data.rows["train"].y)[true_y >= 0]
    return {"size": size, "purity": float(is_right.mean()), "recall": 1.0, "auroc": None}


def summarize_cost(finished: FinishedRun) -> dict[str, Any]:
    """Summarize forward passes, steps, seconds and memory.

    An evaluation pass of a sample costs 1 forward pass, training on it through the backbone 3.
    """
    cost = finished.trainer.cost
    seconds = {"extract": finished.inputs.seconds, "probe": 0.0, "score": 0.0, "tune": 0.0} | cost.seconds
    seconds["total"] = finished.trainer.elapsed_seconds
    return {
        "forward_passes": cost.forward_passes,
        "evaluation_forward_passes": cost.evaluation_forward_passes,
        "training_samples": cost.training_samples,
        "optimizer_steps": cost.optimizer_steps,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_bytes": peak_bytes(),
    }


def find_warnings(finished: FinishedRun) -> list[str]:
    """Return what a reader should know before trusting the result."""
    warnings, data = [], finished.inputs.data
    num_classes, sizes = len(data.classes), np.bincount(data.rows["train"].y, minlength=len(data.classes))
    small = [name for name, size in zip(data.classes, sizes, strict=True) if size < SMALL_CLASS]
    if small:
        warnings.append(
            f"{len(small)} classes have fewer than {SMALL_CLASS} training samples, too few to fit a loss mixture:"
            f" {', '.join(small[:5])}"
        )
    predicted = finished.metrics[-1].get("distinct_predictions")
    if predicted is not None and predicted < 0.9 * num_classes:
        warnings.append(
            f"the model predicts only {predicted} of {num_classes} classes, the head may have lost some:"
            " try a higher method.probe.learning_rate or a smaller method.q"
        )
    largest = sizes.max() / sizes.sum()
    if largest > 5 / num_classes and num_classes > 5:
        warnings.append(
            f'the class "{data.classes[int(sizes.argmax())]}" has {largest:.0%} of the labels:'
            " wrong labels may have collected there"
        )
    if "validation" in data.rows and len(data.rows["validation"]) < SMALL_VALIDATION:
        warnings.append(f"the validation split has {len(data.rows['validation'])} samples, too few to select models by")
    return warnings
