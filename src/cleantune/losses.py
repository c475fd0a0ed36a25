"""Losses as pure functions: one value per sample, never reduced; the caller weighs and averages."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each sample in nats: -log p_y.

    Args:
        logits: Scores before the softmax.
        y: Given labels, 0..C-1.

    Returns:
        One loss per sample, not reduced.

    Source: spec of every baseline; arXiv:2310.17668, section 2.
    """
    return functional.cross_entropy(logits.float(), y, reduction="none")


def gce(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"], q: float = 0.7) -> Float[Tensor, " B"]:
    """Generalised cross-entropy of each sample: (1 - p_y^q) / q.

    q -> 0 is cross-entropy, q = 1 is 1 - p_y. A larger q lets a confidently contradicted label pull less.
    The gradient is p_y^q times that of cross-entropy; p_y is not clamped, so no sample's gradient is cut to zero.

    Args:
        logits: Scores before the softmax.
        y: Given labels, 0..C-1.
        q: Exponent in [0, 1].

    Returns:
        One loss per sample, not reduced.

    Source: Zhang & Sabuncu, NeurIPS 2018, the loss L_q (arXiv:1805.07836), without its truncation.
    """
    log_p = -cross_entropy(logits, y)
    if q == 0:
        return -log_p
    return -torch.expm1(q * log_p) / q


def soft_cross_entropy(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each sample against a distribution over the classes: -sum_c t_c log p_c.

    Args:
        logits: Scores before the softmax.
        target: Rows that sum to 1; no gradient flows into them.

    Returns:
        One loss per sample, not reduced.
    """
    return -(target.detach() * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)


def mean(losses: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the batch of the losses times how far each label is trusted.

    The divisor is the number of samples, not the sum of the weights: a batch of little trusted labels moves
    the model little.
    """
    return (losses * weight).mean()
