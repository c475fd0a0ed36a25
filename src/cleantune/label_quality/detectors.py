"""Single detectors of label errors as pure functions.

Functions that end in `_score` return 0 to 1, lower is worse. The scorer of audits and runs is `scores.score_labels`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional.gmm import fit_class_mixtures


def self_confidence(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the probability of the given label, 0 to 1."""
    return p.gather(1, y[:, None])[:, 0]


def cross_entropy_per_sample(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the cross-entropy of each given label, -log p_y in nats; a probability of zero counts as 1e-30."""
    return -self_confidence(p, y).clamp(min=1e-30).log()


def confidence_mixture_score(
    confidence: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, q: float = 0.7
) -> Float[Tensor, " N"]:
    """Return the posterior of the low component of each class's mixture of GCE losses.

    The mixture stops where scikit-learn's does by default. Fitted to the end it takes six times as long, and on four
    of five sets it ranked worse (`dev/LOG.md`).

    Args:
        confidence: Probability of each given label.
        y: Given labels.
        classes: C.
        q: Exponent of the loss.

    Source: sample selection of TURN (arXiv:2310.17668) on the loss L_q (arXiv:1805.07836).
    """
    confidence = confidence.clamp(min=1e-30)
    loss = (1 - confidence**q) / q if q else -confidence.log()
    return fit_class_mixtures(loss, y, classes, max_iter=100, tol=1e-3).posterior(loss, y)


def agreement_score(votes: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the fraction of the neighbors' votes for the given label.

    Args:
        votes: From `functional.knn.neighbor_votes`.
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
