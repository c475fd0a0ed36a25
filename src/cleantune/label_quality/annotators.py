"""Several annotators: how reliable each is, and what they say together with the probe."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 10
PRIOR = 1.0
"""Right labels that every annotator begins with in each class, beside an even share of 1 wrong one."""


def dawid_skene_posterior(truth: Float[Tensor, "N C"], votes: Int[Tensor, "A N"]) -> Float[Tensor, "N C"]:
    """Probability of every true class once the annotators have been heard, each by their own confusion matrix.

    Args:
        truth: What the probe thinks, from the sample and its given label.
        votes: Labels of the annotators; -1 where one gave none.

    Source: Dawid & Skene, Applied Statistics 28, 1979. Differs: the prior of each sample is the probe's posterior
    instead of the class shares. A given label that was made from these very annotators is counted twice.
    """
    classes = truth.shape[1]
    start = truth.clamp(min=1e-6).log()
    now = truth
    for _ in range(ROUNDS):
        logits = start.clone()
        for vote in votes:
            there = vote >= 0
            seen = torch.zeros(classes, classes).index_add_(0, vote[there], now[there]).T
            matrix = seen + PRIOR * torch.eye(classes) + 1 / classes
            matrix = matrix / matrix.sum(1, keepdim=True)
            logits[there] += matrix.log().T[vote[there]]
        now = torch.softmax(logits, 1)
    return now
