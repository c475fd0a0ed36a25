"""Reliability of several annotators, and the posterior of true classes from their labels and the probe."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_ITERATIONS = 10
PRIOR_CORRECT = 1.0
"""Correct labels that every annotator begins with in each class, next to one wrong label spread evenly."""


def dawid_skene_posterior(prior: Float[Tensor, "N C"], votes: Int[Tensor, "A N"]) -> Float[Tensor, "N C"]:
    """Return the probability of every true class given the votes of annotators with a confusion matrix each.

    Args:
        prior: Posterior of the true class from the sample and its given label.
        votes: Labels of A annotators; -1 where one gave none.

    Source: Dawid & Skene, Applied Statistics 28, 1979. Differs: the prior of each sample is the probe's posterior
    instead of the class shares. A given label that was made from these very annotators is counted twice.
    """
    num_classes = prior.shape[1]
    log_prior = prior.clamp(min=1e-6).log()
    posterior = prior
    for _ in range(NUM_ITERATIONS):
        logits = log_prior.clone()
        for vote in votes:
            voted = vote >= 0
            counts = torch.zeros(num_classes, num_classes).index_add_(0, vote[voted], posterior[voted]).T
            confusion = counts + PRIOR_CORRECT * torch.eye(num_classes) + 1 / num_classes
            confusion = confusion / confusion.sum(1, keepdim=True)
            logits[voted] += confusion.log().T[vote[voted]]
        posterior = torch.softmax(logits, 1)
    return posterior
