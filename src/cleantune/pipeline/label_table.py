"""The list of labels: for each labeled sample of train and validation, how probably its label is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.data import Data
from cleantune.functional.gmm import ClassMixtures, fit_class_mixtures
from cleantune.label_quality.scores import cross_entropy_per_sample
from cleantune.methods.protocol import ProbeStatistics
from cleantune.utils.arrays import object_array

LABELED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Verdict:
    """What is thought of every label of train and validation, in the order of these splits."""

    score: Float[Tensor, " N"]
    """0 surely wrong … 1 surely right; the order of the list."""
    p_clean: Float[Tensor, " N"]
    suggested: Int[Tensor, " N"]
    issue: Bool[Tensor, " N"]
    estimated_rate: float
    """Estimated share of wrong labels."""
    rate_by_class: Float[Tensor, " C"]


@dataclass(frozen=True)
class LabelStatistics:
    """What is known of the labels of one split."""

    y: Int[Tensor, " N"]
    loss: Float[Tensor, " N"]
    """Cross-entropy of the given label, averaged over the epochs of a probe where there was one; nats."""
    late_loss: Float[Tensor, " N"]
    """The same over the later epochs."""
    p: Float[Tensor, "N C"]
    """Class probabilities over the later epochs."""


def witness(statistics: ProbeStatistics | None, look: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> LabelStatistics:
    """Return the statistics of a probe, or those of one evaluation pass where there was no probe."""
    if statistics is None:
        loss = cross_entropy_per_sample(look, y)
        return LabelStatistics(y, loss, loss, look)
    return LabelStatistics(y, statistics.loss, statistics.late_loss, statistics.late_probabilities)


def judge_labels(witnesses: list[LabelStatistics], classes: int) -> Verdict:
    """The verdict from what a probe thought of the labels while it learned.

    `label_score` is exp(-loss): the probability of the given label, a geometric mean over the probe's epochs, of which
    the early ones have not learned wrong labels yet. A label is an issue where the probe, over its later epochs, finds
    another class more probable. `p_clean` is the posterior of the low component of the class's loss mixture, fitted
    on the training split.

    Args:
        witnesses: Train first.
        classes: Number of classes.
    """
    y = torch.cat([w.y for w in witnesses])
    train = witnesses[0]
    mixtures = fit_class_mixtures(train.late_loss, train.y, classes, max_iter=200, tol=1e-6)
    p_clean = torch.cat([mixtures.posterior(w.late_loss, w.y) for w in witnesses])
    score = torch.exp(-torch.cat([w.loss for w in witnesses]))
    suggested = torch.cat([w.p.argmax(1) for w in witnesses])
    issue = suggested != y
    wrong = torch.zeros(classes).index_add_(0, y, issue.float())
    size = torch.bincount(y, minlength=classes)
    return Verdict(score, p_clean, suggested, issue, float(issue.float().mean()), wrong / size.clamp(min=1))


def label_table(data: Data, verdict: Verdict) -> Any:
    """The verdict as a frame, worst first: id, split, given and suggested label, scores, true label where known."""
    import pandas as pd

    splits = [s for s in LABELED_SPLITS if s in data.rows]
    values = object_array(data.class_values)
    y = np.concatenate([data.rows[s].y for s in splits])
    columns: dict[str, Any] = {
        "id": np.concatenate([data.rows[s].ids for s in splits]),
        "split": np.concatenate([np.full(len(data.rows[s]), s, dtype=object) for s in splits]),
        "given_label": values[y],
        "suggested_label": values[verdict.suggested.numpy()],
        "label_score": verdict.score.double().numpy(),
        "is_label_issue": verdict.issue.numpy(),
        "p_clean": verdict.p_clean.double().numpy(),
    }
    if any(s in data.truth for s in splits):
        truth = np.concatenate([data.truth.get(s, np.full(len(data.rows[s]), -1)) for s in splits])
        columns["true_label"] = np.where(truth >= 0, values[truth], None)
    frame = pd.DataFrame(columns).infer_objects()
    order = np.lexsort((np.arange(len(frame)), frame["label_score"].to_numpy()))
    return frame.iloc[order].reset_index(drop=True)


def mixtures_of(
    loss: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """The per-class mixtures of losses as the report draws them, in nats."""
    fitted: ClassMixtures = fit_class_mixtures(loss, y, classes, max_iter=200, tol=1e-6)
    kept = torch.bincount(y[fitted.posterior(loss, y) > 0.5], minlength=classes)
    out = {}
    for c, name in enumerate(names):
        if not fitted.fitted[c]:
            continue
        parts = {
            part: {
                "mean": float(fitted.mean[c, k]),
                "std": float(fitted.variance[c, k] ** 0.5),
                "weight": float(fitted.weight[c, k]),
            }
            for k, part in enumerate(("low", "high"))
        }
        out[name] = parts | {"kept": int(kept[c]), "size": int(fitted.size[c])}
    return out
