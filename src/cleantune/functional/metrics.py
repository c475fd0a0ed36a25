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


def mcnemar_z(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
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


ECE_BINS = 15


def balanced_accuracy(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Mean over the classes that occur of the share of their samples that is found; None of no samples."""
    if not len(y):
        return None
    from sklearn.metrics import recall_score

    return float(recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0))


def macro_f1(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Mean of 2PR / (P + R) over the classes that occur or are predicted; None of no samples.

    The paper of NMTune prints values of about half the accuracy under this name (nmtune spec 5.1): do not compare.
    """
    if not len(y):
        return None
    from sklearn.metrics import f1_score

    return float(f1_score(y, predicted, average="macro", zero_division=0))


def matthews_corrcoef(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Matthews' correlation of predictions and labels, -1..1, 0 where either is constant; None of no samples."""
    if not len(y):
        return None
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(y, predicted))


def pearson(predicted: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float | None:
    """Pearson's correlation of predicted and given numbers; None where either does not vary."""
    if len(y) < 2 or np.ptp(predicted) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(predicted, y)[0, 1])


def calibration_error(p: Float[np.ndarray, "N C"], y: Int[np.ndarray, " N"], bins: int = ECE_BINS) -> float | None:
    """Expected calibration error: how far confidence and accuracy are apart in bins of equal width of the confidence.

    The bins' differences are averaged by their numbers of samples. None of no samples.

    Source: Guo et al., ICML 2017 (arXiv:1706.04599), equation 3, with 15 bins.
    """
    if not len(y):
        return None
    confidence, right = p.max(1).astype(np.float64), (p.argmax(1) == y).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    apart = np.bincount(place, right - confidence, minlength=bins)
    return float(np.abs(apart).sum() / len(y))
