"""summary.json: what came out of a run, in numbers that other programs read."""

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


def make_summary(finished: FinishedRun, scores: Verdict, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """All of summary.json."""
    config, inputs, data = finished.config, finished.inputs, finished.inputs.data
    return {
        "method": config.name,
        "scope": config.method.scope,
        "preset": config.preset,
        "seed": config.run.train_seed,
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "kind": data.kind,
        "model": model_card(inputs),
        "samples": {s: len(data.rows[s]) if s in data.rows else 0 for s in ("train", "validation", "test", "unlabeled")}
        | {"unreadable": len(inputs.unreadable)},
        "accuracy": accuracies(finished, predictions),
        "balanced_accuracy": by_split(metrics.balanced_accuracy, data, predictions),
        "selected_model": finished.selected_model.phase,
        "selection_reason": finished.selected_model.reason,
        "baseline": {
            "name": "CE linear probe",
            "accuracy": finished.baseline.accuracy,
            "seconds": finished.baseline.seconds,
        },
        "noise": noise_summary(finished, scores),
        "issues": issues(data, scores),
        "selection": selection(finished.metrics, data),
        "cost": cost(finished),
        "precision": {
            "dtype": inputs.extraction_precision.dtype,
            "channels_last": inputs.extraction_precision.channels_last,
            "why": inputs.extraction_precision.why,
        },
        "log": list(data.notes),
        "warnings": warnings_of(finished),
        "versions": versions(),
    }


def model_card(inputs: RunInputs) -> dict[str, Any] | None:
    """What is known of the backbone; None of features without one."""
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


def accuracies(finished: FinishedRun, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """On test (and validation by given labels): of the delivered model, of the best epoch, at the end of each phase.

    `best_validation` is the test accuracy of that epoch of the last phase which was best on validation.
    """
    rows = finished.metrics
    ends = ends_of(rows)
    final = [row for row in rows if row["round"] == rows[-1]["round"]]
    best = max(final, key=lambda row: row["accuracy_validation"] or 0.0)
    return by_split(metrics.accuracy, finished.inputs.data, predictions) | {
        "best_validation": best["accuracy_test"],
        "last_epoch": rows[-1]["accuracy_test"],
        "by_phase": {
            name: {"test": row["accuracy_test"], "validation": row["accuracy_validation"]} for name, row in ends.items()
        },
    }


def by_split(
    measure: Callable[[np.ndarray, np.ndarray], float | None], data: Data, predictions: dict[str, Tensor]
) -> dict[str, float | None]:
    """Measure the predictions on test and on validation (by given labels); None where there is no such split."""
    return {
        split: measure(predictions[split].argmax(1).numpy(), data.rows[split].y) if split in predictions else None
        for split in ("test", "validation")
    }


def ends_of(rows: list[EpochMetrics]) -> dict[str, EpochMetrics]:
    """The last row of the first probe, of the last tuning, and of the probe after that (`reprobe`)."""
    ends: dict[str, EpochMetrics] = {}
    for row in rows:
        name = "reprobe" if row["phase"] == "probe" and "tune" in ends else row["phase"]
        ends[name] = row
    return ends


def truth_of(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Given labels, true labels, and where the latter are known, of train and validation."""
    splits = [s for s in LABELED_SPLITS if s in data.rows]
    if not any(s in data.truth for s in splits):
        return None
    y = np.concatenate([data.rows[s].y for s in splits])
    truth = np.concatenate([data.truth.get(s, np.full(len(data.rows[s]), -1)) for s in splits])
    return y, truth, truth >= 0


def noise_summary(finished: FinishedRun, scores: Verdict) -> dict[str, Any]:
    """Estimated and, where known, true noise rates, over all and per class."""
    data = finished.inputs.data
    y = np.concatenate([data.rows[s].y for s in LABELED_SPLITS if s in data.rows])
    known = truth_of(data)
    per_class = {}
    for c, name in enumerate(data.classes):
        per_class[name] = {"estimated_rate": float(scores.rate_by_class[c]), "size": int((y == c).sum())}
        if known is not None and (mine := (y == c) & known[2]).any():
            per_class[name]["true_rate"] = float((known[1] != y)[mine].mean())
    out: dict[str, Any] = {"estimated_rate": scores.estimated_rate, "per_class": per_class}
    if known is not None:
        out["true_rate"] = float((known[1] != y)[known[2]].mean())
    if finished.noise is not None:
        out["injected"] = finished.noise
    return out


def issues(data: Data, scores: Verdict) -> dict[str, Any]:
    """How many labels are listed as wrong and, where true labels are known, how well."""
    flagged = scores.issue.numpy()
    out: dict[str, Any] = {"count": int(flagged.sum())}
    known = truth_of(data)
    if known is None:
        return out
    y, truth, sure = known
    right = (truth == y)[sure]
    flagged = flagged[sure]
    hits = int((flagged & ~right).sum())
    out["auroc"] = metrics.auroc(scores.score.double().numpy()[sure], right)
    out["precision"] = hits / int(flagged.sum()) if flagged.any() else None
    out["recall"] = hits / int((~right).sum()) if (~right).any() else None
    suggested = scores.suggested.numpy()[sure]
    out["suggestion_accuracy"] = metrics.accuracy(suggested[~right], truth[sure][~right])
    return out


def selection(rows: list[EpochMetrics], data: Data) -> dict[str, Any]:
    """Of the last cleansing; a method that trusts everything has the whole training split as its selection."""
    last = next((row for row in reversed(rows) if row.get("selected") is not None), None)
    if last is not None:
        return {"size": last["selected"], **{key: last.get(key) for key in ("purity", "recall", "auroc")}}
    truth = data.truth.get("train")
    if truth is None:
        return {"size": len(data.rows["train"])}
    right = (truth == data.rows["train"].y)[truth >= 0]
    return {"size": len(data.rows["train"]), "purity": float(right.mean()), "recall": 1.0, "auroc": None}


def cost(finished: FinishedRun) -> dict[str, Any]:
    """Forwards in the unit of spec section 6, steps, seconds and memory."""
    spent = finished.trainer.cost
    seconds = {"extract": finished.inputs.seconds, "probe": 0.0, "score": 0.0, "tune": 0.0} | spent.seconds
    return {
        "forward_passes": spent.forward_passes,
        "evaluation_forward_passes": spent.evaluation_forward_passes,
        "training_samples": spent.training_samples,
        "optimizer_steps": spent.optimizer_steps,
        "seconds": {name: round(value, 3) for name, value in (seconds | {"total": finished.trainer.wall}).items()},
        "peak_bytes": peak_bytes(),
    }


def warnings_of(finished: FinishedRun) -> list[str]:
    """What a reader should know before trusting the result (spec, section 7)."""
    out, data = [], finished.inputs.data
    sizes = np.bincount(data.rows["train"].y, minlength=len(data.classes))
    small = [name for name, size in zip(data.classes, sizes, strict=True) if size < 10]
    if small:
        out.append(
            f"{len(small)} classes have fewer than 10 training samples and are judged by rank alone:"
            f" {', '.join(small[:5])}"
        )
    predicted = finished.metrics[-1].get("distinct_predictions")
    if predicted is not None and predicted < 0.9 * len(data.classes):
        out.append(
            f"the model predicts only {predicted} of {len(data.classes)} classes, the head may have lost some:"
            " try a higher method.probe.learning_rate or a smaller method.q"
        )
    largest = sizes.max() / sizes.sum()
    if largest > 5 / len(data.classes) and len(data.classes) > 5:
        out.append(
            f'the class "{data.classes[int(sizes.argmax())]}" has {largest:.0%} of the labels:'
            " wrong labels may have collected there"
        )
    if "validation" in data.rows and len(data.rows["validation"]) < 100:
        out.append(f"the validation split has {len(data.rows['validation'])} samples, too few to judge models by")
    return out
