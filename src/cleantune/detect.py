"""Detectors as pure functions: how probably each given label is right."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def margin(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How far the given label is ahead of the best other class, -1..1.

    Args:
        p: Class probabilities, rows that sum to 1.
        y: Given labels.

    Source: normalised margin, arXiv:1911.00068, section 4; averaged over epochs, arXiv:2510.16211.
    """
    given = p.gather(1, y[:, None])[:, 0]
    others = p.scatter(1, y[:, None], -1.0)
    return given - others.max(dim=1).values.clamp(min=0.0)


def self_confidence(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Probability of the given label, 0..1."""
    return p.gather(1, y[:, None])[:, 0]


def nats(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Cross-entropy of each given label, -log p_y in nats; a probability of zero counts as 1e-30."""
    return -self_confidence(p, y).clamp(min=1e-30).log()
