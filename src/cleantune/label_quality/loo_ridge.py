"""Ridge probes with leave-one-out scores in closed form: no sample's score was learned from its own label.

With the hat values h = diag(X (X'X + l I)^-1 X'), a probe that was fitted without sample i gives it the score
(f_i - h_i y_i) / (1 - h_i).

Source: Allen's PRESS, Technometrics 16, 1974.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.functional.standardize import mean_and_std, to_float32

PENALTIES = (1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4)
"""Penalties l that are tried, for standardized features."""
BLOCK_ROWS = 8192
MAX_COLUMNS = 128
"""Scores by class and penalty that one matrix product computes at most."""
MAX_PENALTY_ROWS = 20_000
"""Samples that the penalty is chosen on, at most."""
MAX_LEVERAGE = 0.999
INTERCEPT_PENALTY = 1e-3


class Ridge(NamedTuple):
    """Ridge probe on standardized features with its leave-one-out scores."""

    loo: Float[Tensor, "N C"]
    """Leave-one-out scores of the samples that it was fitted on."""
    weight: Float[Tensor, "D C"]
    """Coefficients of standardized features."""
    bias: Float[Tensor, " C"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    penalty: float

    def scores(self, features: Any) -> Float[Tensor, "M C"]:
        """Return the scores of samples that the probe was not fitted on.

        Args:
            features: [M, D], an array or memory-mapped.
        """
        starts = range(0, len(features), BLOCK_ROWS)
        blocks = [_block(features, self.mean, self.std, start) @ self.weight + self.bias for start in starts]
        return torch.cat(blocks) if blocks else torch.empty(0, len(self.bias))


def loo_ridge(features: Any, y: Int[Tensor, " N"], num_classes: int) -> Ridge:
    """Fit a ridge probe whose penalty has the least leave-one-out error on the given labels.

    Two passes over blocks of rows; memory is D^2 and N x C.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        num_classes: C.
    """
    count, dim = features.shape
    mean, std = mean_and_std(features)
    prior = torch.bincount(y, minlength=num_classes).float() / count
    gram, cross = torch.zeros(dim, dim), torch.zeros(dim, num_classes)
    for start in range(0, count, BLOCK_ROWS):
        x = _block(features, mean, std, start)
        gram.addmm_(x.T, x)
        cross.addmm_(x.T, _target(y, prior, start))
    values, vectors = torch.linalg.eigh(gram)  # the least penalty is far above float32's error
    values = values.clamp(min=0)
    rotated = vectors.T @ cross
    cache: dict[int, Tensor] = {}
    penalty = _best_penalty(features, y, prior, mean, std, values, vectors, rotated, cache)
    inverse = 1 / (values + penalty)
    weight = inverse[:, None] * rotated
    loo = torch.empty(count, num_classes)
    for start in range(0, count, BLOCK_ROWS):
        z = cache.pop(start, None)
        if z is None:
            z = _block(features, mean, std, start) @ vectors
        target = _target(y, prior, start)
        loo[start : start + len(z)] = _leave_out(z @ weight, z.square() @ inverse, target, count) + prior
    return Ridge(loo, vectors @ weight, prior, mean, std, penalty)


def weighted_loo_ridge(features: Any, y: Int[Tensor, " N"], unweighted: Ridge, weight: Float[Tensor, " N"]) -> Ridge:
    """Fit a ridge probe to which each sample counts as much as its weight says.

    The intercept is not penalized. Two passes over blocks of rows; memory is D^2 and N x C.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        unweighted: Probe with equal weights; gives the standardization, and the penalty times the mean weight.
        weight: Weights, at least 0.
    """
    mean, std, num_classes = unweighted.mean, unweighted.std, len(unweighted.bias)
    count, dim = features.shape
    starts = range(0, count, BLOCK_ROWS)
    gram, cross = torch.zeros(dim + 1, dim + 1), torch.zeros(dim + 1, num_classes)
    for start in starts:
        x, target = _with_intercept(features, mean, std, start), _one_hot(y, num_classes, start)
        weighted = x * weight[start : start + BLOCK_ROWS, None]
        gram.addmm_(weighted.T, x)
        cross.addmm_(weighted.T, target)
    penalty = max(unweighted.penalty * float(weight.mean()), INTERCEPT_PENALTY)
    diagonal = torch.full((dim + 1,), penalty, dtype=torch.float64)
    diagonal[-1] = INTERCEPT_PENALTY
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double() + diagonal.diag()))
    coefficients, inverse = (inverse @ cross.double()).float(), inverse.float()
    loo = torch.empty(count, num_classes)
    for start in starts:
        x, target = _with_intercept(features, mean, std, start), _one_hot(y, num_classes, start)
        leverage = ((x @ inverse) * x).sum(1) * weight[start : start + BLOCK_ROWS]
        leverage = leverage.clamp(max=MAX_LEVERAGE)[:, None]
        loo[start : start + BLOCK_ROWS] = (x @ coefficients - leverage * target) / (1 - leverage)
    return Ridge(loo, coefficients[:-1], coefficients[-1], mean, std, penalty)


def _block(features: Any, mean: Tensor, std: Tensor, start: int) -> Tensor:
    return (to_float32(features[start : start + BLOCK_ROWS]) - mean).div_(std)


def _with_intercept(features: Any, mean: Tensor, std: Tensor, start: int) -> Tensor:
    return functional.pad(_block(features, mean, std, start), (0, 1), value=1.0)


def _one_hot(y: Tensor, num_classes: int, start: int) -> Tensor:
    return functional.one_hot(y[start : start + BLOCK_ROWS], num_classes).float()


def _target(y: Tensor, prior: Tensor, start: int) -> Tensor:
    return _one_hot(y, len(prior), start) - prior


def _leave_out(score: Tensor, leverage: Tensor, target: Tensor, count: int) -> Tensor:
    leverage = (leverage + 1 / count).clamp(max=MAX_LEVERAGE)[:, None]
    return (score - leverage * target) / (1 - leverage)


def _best_penalty(
    features: Any, y: Tensor, prior: Tensor, mean: Tensor, std: Tensor, values: Tensor, vectors: Tensor,
    rotated: Tensor, cache: dict[int, Tensor],
) -> float:  # fmt: skip
    """Return the best penalty; blocks in the basis of the eigenvectors stay in the cache, by first row."""
    starts = range(0, len(y), BLOCK_ROWS)
    sampled = list(starts)[:: max(1, len(starts) * BLOCK_ROWS // MAX_PENALTY_ROWS)]
    inverses = 1 / (values[:, None] + torch.tensor(PENALTIES))
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    step = max(1, MAX_COLUMNS // len(prior))  # a product with few columns takes as long as one with more
    for start in sampled:
        target = _target(y, prior, start)
        cache[start] = z = _block(features, mean, std, start) @ vectors
        leverages = z.square() @ inverses
        for first in range(0, len(PENALTIES), step):
            inverse = inverses[:, first : first + step]
            scores = z @ (inverse[:, :, None] * rotated[:, None]).flatten(1)
            for k, score in enumerate(torch.split(scores, len(prior), 1), first):
                errors[k] += (_leave_out(score, leverages[:, k], target, len(y)) - target).square().sum().double()
    return PENALTIES[int(errors.argmin())]
