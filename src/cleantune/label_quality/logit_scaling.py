"""Bias-corrected temperature scaling: from the scores of a probe to probabilities that fit the given labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.label_quality.noise_likelihood import Parameters, maximize_likelihood

MAX_ROWS = 20_000
"""Samples that scale and bias are fitted on, at most."""
INITIAL_SCALE = 5.0
BIAS_PENALTY = 1e-4
MAX_STEPS = 50


class LogitScaling(NamedTuple):
    """Scale of all scores and a bias by class that make logits of scores."""

    scale: float
    bias: Float[Tensor, " C"]

    def logits(self, scores: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        """Return the logits."""
        return self.scale * scores + self.bias


def fit_logit_scaling(scores: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> LogitScaling:
    """Return the scale and bias under which a softmax of the scores has the highest likelihood.

    Args:
        scores: Scores of which none was learned from its own label.
        y: Given labels.

    Source: temperature scaling (arXiv:1706.04599, section 4.2) with a bias by class (arXiv:1901.06852, section 3).
    """
    rows = torch.arange(len(y))
    if len(y) > MAX_ROWS:
        rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:MAX_ROWS].sort().values
    sample, given = scores[rows], y[rows]
    count = len(given)
    start = {"scale": torch.tensor(INITIAL_SCALE), "bias": torch.zeros(scores.shape[1])}

    def value(at: Parameters) -> tuple[float, Parameters]:
        log_p = torch.log_softmax(at["scale"] * sample + at["bias"], 1)
        height = float(log_p.gather(1, given[:, None]).mean()) - BIAS_PENALTY * float(at["bias"].square().mean())
        slope = log_p.exp_().neg_()
        slope[torch.arange(count), given] += 1
        by_scale = torch.dot(slope.flatten(), sample.flatten()) / count
        return height, {"scale": by_scale, "bias": slope.mean(0) - 2 * BIAS_PENALTY * at["bias"] / len(at["bias"])}

    at = maximize_likelihood(value, start, list(start), MAX_STEPS, count)
    return LogitScaling(float(at["scale"]), at["bias"])
