"""The list of labels: for each labelled sample of train and validation, how probably its label is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.data import Data
from cleantune.detect import margin
from cleantune.ledger import Ledger
from cleantune.mixture import ClassMixtures, class_mixtures

LISTED = ("train", "validation")


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


def judge_labels(
    splits: list[tuple[Ledger, Float[Tensor, "N C"], Int[Tensor, " N"]]], classes: int
) -> Verdict:
    """The verdict from the trajectory in the ledgers and the last look of the delivered model.

    `label_score` is the mean of two margins, scaled to 0..1: the one averaged over the run's looks, and the
    delivered model's. The first is hard to fool because early epochs have not learned wrong labels yet, the second
    comes from the best model. `p_clean` is the posterior of the low component of a mixture per class of
    -log(label_score), fitted on the training split.

    Args:
        splits: Train first: its ledger, the delivered model's probabilities, the given labels.
        classes: Number of classes.
    """
    scores, suggestions = [], []
    for ledger, p, y in splits:
        own = margin(p, y)
        seen = ledger["margin"] if "margin" in ledger else own
        scores.append((2 + own + seen).clamp(0, 4) / 4)
        mean_p = (p + ledger["p"]) / 2 if "p" in ledger else p
        suggestions.append(mean_p.argmax(1))
    y = torch.cat([s[2] for s in splits])
    score, suggested = torch.cat(scores), torch.cat(suggestions)
    train = len(splits[0][2])
    loss = -torch.log(score.clamp(min=1e-3))
    mixtures = class_mixtures(loss[:train], y[:train], classes)
    p_clean = mixtures.posterior(loss, y)
    issue = (p_clean < 0.5) & (suggested != y)
    wrong = torch.zeros(classes).index_add_(0, y, issue.float())
    size = torch.bincount(y, minlength=classes)
    return Verdict(score, p_clean, suggested, issue, float(issue.float().mean()), wrong / size.clamp(min=1))


def label_table(data: Data, verdict: Verdict) -> Any:
    """The verdict as a frame, worst first: id, split, given and suggested label, scores, true label where known."""
    import pandas as pd

    splits = [s for s in LISTED if s in data.rows]
    values = np.array([*data.class_values, None], dtype=object)[:-1]
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


def mixtures_of(loss: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The per-class mixtures of losses as the report draws them, in nats."""
    fitted: ClassMixtures = class_mixtures(loss, y, classes)
    kept = torch.bincount(y[fitted.posterior(loss, y) > 0.5], minlength=classes)
    out = {}
    for c, name in enumerate(names):
        if not fitted.fitted[c]:
            continue
        parts = {
            part: {"mean": float(fitted.mean[c, k]), "std": float(fitted.variance[c, k] ** 0.5), "weight": float(fitted.weight[c, k])}
            for k, part in enumerate(("low", "high"))
        }
        out[name] = parts | {"kept": int(kept[c]), "size": int(fitted.size[c])}
    return out
