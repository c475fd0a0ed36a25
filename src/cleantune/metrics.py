"""How good a model, a selection or a score is; here, and nowhere below, true labels are looked at."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def accuracy(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Share of predictions equal to the labels; None of no samples."""
    return float((predicted == y).mean()) if len(y) else None


def auroc(score: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]) -> float | None:
    """Probability that a right label scores above a wrong one, ties counting half; None where all are alike."""
    if right.all() or not right.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(right, score))


def purity(weight: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]) -> float | None:
    """Share of the trusted weight that lies on right labels; None where nothing is trusted."""
    total = float(weight.sum())
    return float(weight[right].sum()) / total if total > 0 else None


def recall(keep: Bool[np.ndarray, " N"], right: Bool[np.ndarray, " N"]) -> float | None:
    """Share of the right labels that are kept; None where no label is right."""
    return float(keep[right].mean()) if right.any() else None


def standard_error(share: float, samples: int) -> float:
    """Binomial standard error of a share measured on so many samples."""
    return float(np.sqrt(max(share * (1 - share), 0.0) / max(samples, 1)))


def lost_against(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """How clearly the second model is worse than the first on the same samples, in standard errors.

    McNemar's statistic with a sign: of the samples on which exactly one of the two is right, the surplus of the
    first, divided by its standard deviation under equality. Positive: the first is better.

    Args:
        first: Whether the first model is right, by sample.
        second: The same of the second model.
    """
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    apart = only_first + only_second
    return (only_first - only_second) / apart**0.5 if apart else 0.0
