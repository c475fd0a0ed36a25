"""The summary of a run: summary.json, the numbers that other programs read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cleantune.data import Data
from cleantune.functional import metrics
from cleantune.label_quality.scores import LabelScores
from cleantune.methods.protocol import EpochMetrics
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.label_table import LabelTable, measure_labels
from cleantune.pipeline.record import versions
from cleantune.utils.malloc import peak_bytes

SMALL_CLASS = 10
"""Training samples below which a class gets a warning."""
SMALL_VALIDATION = 100
"""Validation samples below which the split gets a warning."""


def make_summary(
    finished: FinishedRun, scores: LabelScores, table: LabelTable, predictions: dict[str, Tensor]
) -> dict[str, Any]:
    """Return the table of summary.json.

    Args:
        finished: Trained run.
        scores: Scores of the labels of train and validation.
        table: These labels.
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
        "noise": summarize_noise(finished, scores, table),
        "issues": measure_issues(scores, table),
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


def summarize_noise(finished: FinishedRun, scores: LabelScores, table: LabelTable) -> dict[str, Any]:
    """Summarize estimated and, where known, true noise rates, in total and by class.

    Where label errors cannot be identified, the estimates are null and the reason is given.
    """
    identifiable, true_y = scores.identifiable, table.true_y
    per_class: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(table.class_names):
        members = table.y == c
        rate = float(scores.by_class[c, 0]) if identifiable else None
        per_class[name] = {"estimated_rate": rate, "size": int(members.sum())}
        if true_y is not None and (known := members & (true_y >= 0)).any():
            per_class[name]["true_rate"] = float((true_y != table.y)[known].mean())
    noise: dict[str, Any] = {
        "estimated_rate": scores.noise_rate if identifiable else None,
        "estimated_range": list(scores.noise_rate_range) if identifiable else None,
        "identifiable": identifiable,
        "reason": scores.reason or None,
        "per_class": per_class,
    }
    if measured := measure_labels(scores, table):
        noise["true_rate"] = measured["true_rate"]
    if finished.noise is not None:
        noise["injected"] = finished.noise
    return noise


def measure_issues(scores: LabelScores, table: LabelTable) -> dict[str, Any]:
    """Count the labels that are listed as wrong and, where true labels are known, measure the list."""
    issues = {"count": int(scores.is_issue.sum()), "threshold": scores.threshold if scores.identifiable else None}
    return issues | {key: value for key, value in measure_labels(scores, table).items() if key != "true_rate"}


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
            f"{len(small)} classes have fewer than {SMALL_CLASS} training samples, too few to score their labels:"
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
