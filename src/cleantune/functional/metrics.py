"""Metrics of models, selections and scores; true labels are used here and nowhere in training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

ECE_BINS = 15
"""Bins of the expected calibration error."""


def accuracy(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Return the fraction of predictions equal to the labels; None without samples."""
    return float((predicted == y).mean()) if len(y) else None


def balanced_accuracy(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Return the recall averaged over the classes that occur; None without samples."""
    if not len(y):
        return None
    from sklearn.metrics import recall_score

    return float(recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0))


def macro_f1(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Return F1 averaged over the classes that occur or are predicted; None without samples.

    NMTune (arXiv:2309.17002) prints values of about half the accuracy under this name, which are not comparable.
    """
    if not len(y):
        return None
    from sklearn.metrics import f1_score

    return float(f1_score(y, predicted, average="macro", zero_division=0))


def matthews_corrcoef(predicted: Int[np.ndarray, " N"], y: Int[np.ndarray, " N"]) -> float | None:
    """Return the Matthews correlation coefficient, -1..1, 0 if either is constant; None without samples."""
    if not len(y):
        return None
    from sklearn import metrics

    return float(metrics.matthews_corrcoef(y, predicted))


def pearson(predicted: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float | None:
    """Return the Pearson correlation of predicted and given numbers; None if either is constant."""
    if len(y) < 2 or np.ptp(predicted) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(predicted, y)[0, 1])


def calibration_error(p: Float[np.ndarray, "N C"], y: Int[np.ndarray, " N"], bins: int = ECE_BINS) -> float | None:
    """Compute the expected calibration error.

    Args:
        p: Predicted probabilities.
        y: True labels.
        bins: Number of bins of equal width of the confidence.

    Returns:
        Difference of confidence and accuracy, averaged over the bins by their numbers of samples; None without samples.

    Source: Guo et al., ICML 2017 (arXiv:1706.04599), equation 3, with 15 bins.
    """
    if not len(y):
        return None
    confidence, is_right = p.max(1).astype(np.float64), (p.argmax(1) == y).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, is_right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def auroc(score: Float[np.ndarray, " N"], is_right: Bool[np.ndarray, " N"]) -> float | None:
    """Return the probability that a right label scores above a wrong one, ties counting half.

    None if all labels are right or all are wrong.
    """
    if is_right.all() or not is_right.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_right, score))


def purity(weight: Float[np.ndarray, " N"], is_right: Bool[np.ndarray, " N"]) -> float | None:
    """Return the fraction of the selected weight that is on right labels; None if nothing is selected."""
    total = float(weight.sum())
    return float(weight[is_right].sum()) / total if total > 0 else None


def recall(mask: Bool[np.ndarray, " N"], is_right: Bool[np.ndarray, " N"]) -> float | None:
    """Return the fraction of the right labels that are selected; None if no label is right."""
    return float(mask[is_right].mean()) if is_right.any() else None


def standard_error(fraction: float, samples: int) -> float:
    """Return the binomial standard error of a fraction of a number of samples."""
    return float(np.sqrt(max(fraction * (1 - fraction), 0.0) / max(samples, 1)))


def mcnemar_z(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """Return McNemar's statistic with a sign: how much better the first model is, in standard errors.

    Of the samples on which exactly one of the two models is right, it is the surplus of the first divided by its
    standard deviation under equality.

    Args:
        first: True where the first model is right.
        second: True where the second model is right.
    """
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    total = only_first + only_second
    return (only_first - only_second) / total**0.5 if total else 0.0
