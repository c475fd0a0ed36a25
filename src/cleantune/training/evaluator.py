"""What is measured after each epoch: accuracies, and, where true labels are known, how good the selection is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cleantune.data import Data
from cleantune.functional import metrics
from cleantune.methods.protocol import EpochMetrics
from cleantune.training.trainer import Trainer


@dataclass
class Evaluator:
    """Asked by the driver after each epoch. It sees true labels, and nothing that it says reaches the training.

    Once the backbone learns, a look at the test split costs forward_passes: it is looked at where validation is the best
    of the phase so far, and at the phase's end, which is all that `best` and `last` need.
    """

    data: Data
    every_epoch: bool = False
    """Look at the test split after every epoch all the same."""
    best: dict[str, float] = field(default_factory=dict)
    """Best validation accuracy of each phase so far."""

    def recall(self, rows: list[EpochMetrics]) -> None:
        """Know what an interrupted run had measured."""
        for row in rows:
            self._improves(row["phase"], row["accuracy_validation"])

    def _improves(self, phase: str, accuracy: float | None) -> bool:
        if accuracy is None or accuracy <= self.best.get(phase, -1.0):
            return accuracy is None
        self.best[phase] = accuracy
        return True

    def __call__(self, run: Trainer, looks: dict[str, Tensor]) -> dict[str, Any]:
        """Numbers of one epoch, for its row.

        Args:
            run: After the epoch.
            looks: Probabilities by split that were looked at anyway.
        """
        assert run.phase is not None
        said: dict[str, Any] = {"accuracy_validation": None, "accuracy_test": None}
        predictions = []
        last = run.epoch == run.phase.stage.epochs - 1
        for split in ("validation", "test"):
            if split not in self.data.rows:
                continue
            if split == "test":
                improved = self._improves(run.phase.name, said["accuracy_validation"])
                if not (improved or last or self.every_epoch or run.uses_cached_features):
                    continue
            p = looks[split] if split in looks else run.probabilities(split)
            predicted = p.argmax(1).numpy()
            predictions.append(predicted)
            said[f"accuracy_{split}"] = metrics.accuracy(predicted, self.data.rows[split].y)
            if split == "validation":
                said["accuracy_validation_true"] = self._true_accuracy(split, predicted)
        said["distinct_predictions"] = len(np.unique(np.concatenate(predictions))) if predictions else None
        return said | self._selection(run)

    def _true_accuracy(self, split: str, predicted: np.ndarray) -> float | None:
        truth = self.data.truth.get(split)
        if truth is None or not (truth >= 0).any():
            return None
        return metrics.accuracy(predicted[truth >= 0], truth[truth >= 0])

    def _selection(self, run: Trainer) -> dict[str, Any]:
        """Size, balance, purity and recall of the last plan, and how well `p_clean` tells right from wrong."""
        selection = run.selection
        if selection is None or run.row.get("selected") is None:
            return {"selected": None}
        keep, y = selection.mask, run.y
        counts = torch.bincount(y[keep], minlength=run.classes)[torch.bincount(y, minlength=run.classes) > 0]
        said: dict[str, Any] = {
            "selected": int(keep.sum()),
            "selected_per_class": {"min": int(counts.min()), "median": int(counts.median()), "max": int(counts.max())},
        }
        truth = self.data.truth.get("train")
        if truth is None:
            return said
        known = truth >= 0
        right = (truth == y.numpy())[known]
        weight = torch.where(keep, selection.weight, torch.zeros(())).numpy()[known]
        said["purity"] = metrics.purity(weight.astype(np.float64), right)
        said["recall"] = metrics.recall(keep.numpy()[known], right)
        if "p_clean" in run.ledger:
            said["auroc"] = metrics.auroc(run.ledger["p_clean"].double().numpy()[known], right)
        return said
