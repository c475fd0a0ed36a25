"""Metrics of an epoch: accuracies and, where true labels are known, the quality of the selection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cleantune.data import Data
from cleantune.functional import metrics
from cleantune.methods.protocol import EpochMetrics
from cleantune.training.trainer import Trainer


@dataclass
class Evaluator:
    """Evaluation of a run after each epoch. It sees true labels; nothing of it reaches the training.

    Once the backbone learns, an evaluation of the test split costs forward passes. It is evaluated where validation is
    the best of the phase so far, and at the end of the phase, as model selection needs no other epochs.
    """

    data: Data
    every_epoch: bool = False
    """Evaluate the test split after every epoch."""
    best: dict[str, float] = field(default_factory=dict)
    """Best validation accuracy by phase so far."""

    def restore(self, rows: Iterable[EpochMetrics]) -> None:
        """Take up the metrics of an interrupted run."""
        for row in rows:
            self._improves(row["phase"], row["accuracy_validation"])

    def __call__(self, trainer: Trainer) -> dict[str, Any]:
        """Return the metrics of the current epoch."""
        assert trainer.phase is not None
        row: dict[str, Any] = {"accuracy_validation": None, "accuracy_test": None}
        predictions = []
        is_last = trainer.epoch == trainer.phase.stage.epochs - 1
        for split in ("validation", "test"):
            if split not in self.data.rows:
                continue
            if split == "test":
                improved = self._improves(trainer.phase.name, row["accuracy_validation"])
                if not (improved or is_last or self.every_epoch or not trainer.predictor.features_stale):
                    continue
            predicted = trainer.probabilities(split).argmax(1).numpy()
            predictions.append(predicted)
            row[f"accuracy_{split}"] = metrics.accuracy(predicted, self.data.rows[split].y)
            if split == "validation":
                row["accuracy_validation_true"] = self._true_accuracy(split, predicted)
        row["distinct_predictions"] = len(np.unique(np.concatenate(predictions))) if predictions else None
        return row | self._selection_metrics(trainer)

    def _improves(self, phase: str, accuracy: float | None) -> bool:
        """Note a validation accuracy, and return True if it is the best of the phase or there is none."""
        if accuracy is None or accuracy <= self.best.get(phase, -1.0):
            return accuracy is None
        self.best[phase] = accuracy
        return True

    def _true_accuracy(self, split: str, predicted: np.ndarray) -> float | None:
        """Return the accuracy against the true labels, where they are known."""
        truth = self.data.truth.get(split)
        if truth is None or not (truth >= 0).any():
            return None
        return metrics.accuracy(predicted[truth >= 0], truth[truth >= 0])

    def _selection_metrics(self, trainer: Trainer) -> dict[str, Any]:
        """Return size, balance, purity and recall of the last selection, and the AUROC of `p_clean`."""
        selection = trainer.selection
        if selection is None or trainer.metrics.get("selected") is None:
            return {"selected": None}
        keep, y = selection.mask, trainer.y
        counts = torch.bincount(y[keep], minlength=trainer.classes)[torch.bincount(y, minlength=trainer.classes) > 0]
        row: dict[str, Any] = {
            "selected": int(keep.sum()),
            "selected_per_class": {"min": int(counts.min()), "median": int(counts.median()), "max": int(counts.max())},
        }
        truth = self.data.truth.get("train")
        if truth is None:
            return row
        has_truth = truth >= 0
        is_correct = (truth == y.numpy())[has_truth]
        weight = torch.where(keep, selection.weight, torch.zeros(())).numpy()[has_truth]
        row["purity"] = metrics.purity(weight.astype(np.float64), is_correct)
        row["recall"] = metrics.recall(keep.numpy()[has_truth], is_correct)
        if "p_clean" in trainer.ledger:
            row["auroc"] = metrics.auroc(trainer.ledger["p_clean"].double().numpy()[has_truth], is_correct)
        return row
