"""Single detectors of label errors as pure functions.

Functions that end in `_score` return 0 to 1, lower is worse. The scorer of audits and runs is `scores.score_labels`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.functional.gmm import fit_class_mixtures


def margin(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the margin of the given label over the best other class, -1 to 1.

    Args:
        p: Class probabilities, rows that sum to 1.
        y: Given labels.

    Source: normalized margin, arXiv:1911.00068, section 4; averaged over epochs, arXiv:2510.16211.
    """
    given = p.gather(1, y[:, None])[:, 0]
    others = p.scatter(1, y[:, None], -1.0)
    return given - others.max(dim=1).values.clamp(min=0.0)


def self_confidence(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the probability of the given label, 0 to 1."""
    return p.gather(1, y[:, None])[:, 0]


def cross_entropy_per_sample(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the cross-entropy of each given label, -log p_y in nats; a probability of zero counts as 1e-30."""
    return -self_confidence(p, y).clamp(min=1e-30).log()


def trajectory_margin_score(p: Float[Tensor, "E N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the margin averaged over the epochs of a probe, scaled to 0 to 1.

    Args:
        p: Probabilities by epoch; early epochs have not learned wrong labels yet, so no cross-validation is needed.
        y: Given labels.

    Source: arXiv:2510.16211; the area under the margin, arXiv:2001.10528.
    """
    return (torch.stack([margin(epoch, y) for epoch in p]).mean(0) + 1) / 2


def trajectory_confidence_score(p: Float[Tensor, "E N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the self-confidence averaged over the epochs of a probe."""
    return torch.stack([self_confidence(epoch, y) for epoch in p]).mean(0)


def gce_mixture_score(p: Float[Tensor, "N C"], y: Int[Tensor, " N"], q: float = 0.7) -> Float[Tensor, " N"]:
    """Return the posterior of the low component of each class's mixture of GCE losses.

    Args:
        p: Class probabilities.
        y: Given labels.
        q: Exponent of the loss.

    Source: sample selection of TURN (arXiv:2310.17668) on the loss L_q (arXiv:1805.07836).
    """
    return confidence_mixture_score(self_confidence(p, y), y, p.shape[1], q)


def confidence_mixture_score(
    confidence: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, q: float = 0.7
) -> Float[Tensor, " N"]:
    """Return the `gce_mixture_score` from the self-confidence alone.

    The mixture stops where scikit-learn's does by default. Fitted to the end it takes six times as long, and on four
    of five sets it ranked worse (`dev/LOG.md`).
    """
    confidence = confidence.clamp(min=1e-30)
    loss = (1 - confidence**q) / q if q else -confidence.log()
    return fit_class_mixtures(loss, y, classes, max_iter=100, tol=1e-3).posterior(loss, y)


def agreement_score(votes: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the fraction of the neighbors' votes for the given label.

    Args:
        votes: From `neighbors.votes`.
        y: Given labels.

    Source: SimiFeat's vote (arXiv:2110.06283), with soft weights.
    """
    return self_confidence(votes, y)


def distance_ratio_score(
    index: Int[Tensor, "N K"], similarity: Float[Tensor, "N K"], y: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return d_other^2 / (d_same^2 + d_other^2) of the nearest samples with another and with the same label.

    Args:
        index: Neighbors, nearest first.
        similarity: Their cosines; 1 - cosine is the distance.
        y: Given labels. A label that no neighbor has (or that all have) counts as farther than the last neighbor.

    Source: SelfClean (arXiv:2305.17048); Differs: distances are those of K neighbors, never in an N x N matrix.
    """
    distance = (1 - similarity).clamp(min=1e-12)
    same = y[index] == y[:, None]
    far = 2 * distance[:, -1]
    near_same = torch.where(same, distance, far[:, None]).min(1).values.square()
    near_other = torch.where(~same, distance, far[:, None]).min(1).values.square()
    return near_other / (near_same + near_other)


def confident_thresholds(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " C"]:
    """Return the mean self-confidence of each class's given labels; 1 for a class without any.

    Source: confident learning, arXiv:1911.00068, equation 2.
    """
    classes = p.shape[1]
    own = self_confidence(p, y).double()
    size = torch.bincount(y, minlength=classes)
    mean = torch.zeros(classes, dtype=torch.float64).index_add_(0, y, own) / size.clamp(min=1)
    return torch.where(size > 0, mean, torch.ones_like(mean))


def confident_learning_score(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the self-confidence adjusted by the class's threshold and normalized, as confident learning ranks.

    Equals cleanlab's `get_label_quality_scores(..., adjust_pred_probs=True)`.

    Source: arXiv:1911.00068, section 4; cleanlab 2.9.0.
    """
    adjusted = p.double() - confident_thresholds(p, y)
    adjusted = adjusted + confident_thresholds(p, y).max()
    adjusted = adjusted / adjusted.sum(1, keepdim=True)
    return self_confidence(adjusted, y)


def margin_score(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the normalized margin scaled to 0 to 1; equals cleanlab's `normalized_margin`."""
    return (margin(p, y) + 1) / 2


def confident_joint(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Int[Tensor, "C C"]:
    """Return the counts of samples labeled j (rows) that are confidently k (columns).

    A sample is confidently the most probable class where it reaches the thresholds of several, that class where it
    reaches one, and none where it reaches none. Every class has at least one sample on the diagonal. Equals
    cleanlab's `compute_confident_joint(..., calibrate=False)`.

    Source: arXiv:1911.00068, equation 1.
    """
    reached: Bool[Tensor, "N C"] = p.double() >= confident_thresholds(p, y) - 1e-6
    num_reached = reached.sum(1)
    best = torch.where(num_reached > 1, p.argmax(1), reached.int().argmax(1))
    confident, classes = num_reached > 0, p.shape[1]
    cells = y[confident] * classes + best[confident]
    joint = torch.bincount(cells, minlength=classes * classes).view(classes, classes)
    return torch.maximum(joint, torch.eye(classes, dtype=joint.dtype))
