"""Probabilities of every sample's classes that were not learned from its own label, without cross-validation.

A ridge probe has its leave-one-out scores in closed form: with the hat values h = diag(X (X'X + l I)^-1 X'), the
score that sample i would get from a probe fitted without it is (f_i - h_i y_i) / (1 - h_i). Neighbors' votes leave
the sample out by themselves. A softmax over a weighted sum of both, whose few weights are fitted to the given
labels, makes probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.functional.standardize import mean_and_std, to_float32
from cleantune.label_quality.noise_likelihood import Parameters, maximize_likelihood

PENALTIES = (1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4)
"""l that are tried, for standardized features."""
BLOCK = 8192
WIDE = 128
"""Scores that a block is multiplied for at a time, by class and penalty."""
TRIED = 20_000
"""Samples that the penalty and the weights of the stack are chosen on, at the most."""


class Ridge(NamedTuple):
    """A ridge probe and its leave-one-out scores."""

    loo: Float[Tensor, "N C"]
    weight: Float[Tensor, "D C"]
    """For standardized features."""
    bias: Float[Tensor, " C"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    penalty: float
    error: float
    """Mean squared leave-one-out error, summed over classes."""


@dataclass(frozen=True)
class Stack:
    """How parts become logits: a sum with these weights, and a bias by class."""

    weights: tuple[float, ...]
    bias: Float[Tensor, " C"]

    def __call__(self, *parts: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Logits."""
        return sum((w * part for w, part in zip(self.weights, parts, strict=True)), self.bias)


def loo_ridge(features: Any, y: Int[Tensor, " N"], classes: int) -> Ridge:
    """A ridge probe on standardized features, its penalty chosen by the leave-one-out error on given labels.

    Two passes over blocks of rows; memory is D^2 and N x C.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        classes: C.

    Source: the closed form of leave-one-out ridge, Allen's PRESS (Technometrics 16, 1974).
    """
    count, width = features.shape
    mean, std = mean_and_std(features)
    prior = torch.bincount(y, minlength=classes).float() / count
    gram, cross = torch.zeros(width, width), torch.zeros(width, classes)
    for start in range(0, count, BLOCK):
        x = _block(features, mean, std, start)
        gram += x.T @ x
        cross.addmm_(x.T, _target(y, prior, start))
    values, vectors = torch.linalg.eigh(gram)  # the least penalty is far above float32's error
    values = values.clamp(min=0)
    rotated = vectors.T @ cross
    seen: dict[int, Tensor] = {}
    penalty, error = _best_penalty(features, y, prior, mean, std, values, vectors, rotated, seen)
    inverse = 1 / (values + penalty)
    weight = inverse[:, None] * rotated
    loo = torch.empty(count, classes)
    for start in range(0, count, BLOCK):
        z = seen.pop(start, None)
        if z is None:
            z = _block(features, mean, std, start) @ vectors
        target = _target(y, prior, start)
        loo[start : start + len(z)] = _left_out(z @ weight, z.square() @ inverse, target, count) + prior
    return Ridge(loo, vectors @ weight, prior, mean, std, penalty, error)


def weighted_loo_ridge(
    features: Any, y: Int[Tensor, " N"], ridge: Ridge, weight: Float[Tensor, " N"]
) -> Float[Tensor, "N C"]:
    """Leave-one-out scores of a ridge probe to which each sample counts as much as its weight says.

    With an intercept that is not penalized; its penalty is the given probe's times the mean weight. Two passes over
    blocks of rows; memory is D^2 and N x C.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        ridge: The probe that counted all alike.
        weight: At least 0.
    """
    (count, width), classes = features.shape, len(ridge.bias)
    starts = range(0, count, BLOCK)
    gram, cross = torch.zeros(width + 1, width + 1), torch.zeros(width + 1, classes)
    for start in starts:
        x, target = _with_one(features, ridge, start), functional.one_hot(y[start : start + BLOCK], classes).float()
        dawid_skene_posterior = x * weight[start : start + BLOCK, None]
        gram += dawid_skene_posterior.T @ x
        cross.addmm_(dawid_skene_posterior.T, target)
    penalty = torch.full((width + 1,), max(ridge.penalty * float(weight.mean()), 1e-3), dtype=torch.float64)
    penalty[-1] = 1e-3
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double() + penalty.diag()))
    coefficients, inverse = (inverse @ cross.double()).float(), inverse.float()
    out = torch.empty(count, classes)
    for start in starts:
        x, target = _with_one(features, ridge, start), functional.one_hot(y[start : start + BLOCK], classes).float()
        own = ((x @ inverse * x).sum(1) * weight[start : start + BLOCK]).clamp(max=0.999)[:, None]
        out[start : start + BLOCK] = (x @ coefficients - own * target) / (1 - own)
    return out


def _with_one(features: Any, ridge: Ridge, start: int) -> Tensor:
    return functional.pad(_block(features, ridge.mean, ridge.std, start), (0, 1), value=1.0)


def _block(features: Any, mean: Tensor, std: Tensor, start: int) -> Tensor:
    return (to_float32(features[start : start + BLOCK]) - mean).div_(std)


def _target(y: Tensor, prior: Tensor, start: int) -> Tensor:
    return functional.one_hot(y[start : start + BLOCK], len(prior)).float() - prior


def _left_out(score: Tensor, leverage: Tensor, target: Tensor, count: int) -> Tensor:
    own = (leverage + 1 / count).clamp(max=0.999)[:, None]
    return (score - own * target) / (1 - own)


def _best_penalty(
    features: Any, y: Tensor, prior: Tensor, mean: Tensor, std: Tensor, values: Tensor, vectors: Tensor,
    rotated: Tensor, seen: dict[int, Tensor],
) -> tuple[float, float]:  # fmt: skip
    """The penalty and its error; blocks turned into the eigenvectors' directions stay in `seen`, by first row."""
    starts = range(0, len(y), BLOCK)
    some = list(starts)[:: max(1, len(starts) * BLOCK // TRIED)]
    inverses = 1 / (values[:, None] + torch.tensor(PENALTIES))
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    together = max(1, WIDE // len(prior))  # a product with few columns takes as long as one with more
    for start in some:
        target = _target(y, prior, start)
        seen[start] = z = _block(features, mean, std, start) @ vectors
        leverages = z.square() @ inverses
        for first in range(0, len(PENALTIES), together):
            inverse = inverses[:, first : first + together]
            scores = z @ (inverse[:, :, None] * rotated[:, None]).flatten(1)
            for k, score in enumerate(torch.split(scores, len(prior), 1), first):
                errors[k] += (_left_out(score, leverages[:, k], target, len(y)) - target).square().sum().double()
    k = int(errors.argmin())
    return PENALTIES[k], float(errors[k] / sum(map(len, seen.values())))


def stack(parts: list[Float[Tensor, "N C"]], y: Int[Tensor, " N"]) -> Stack:
    """The weights under which a softmax over the sum of the parts fits the given labels best.

    Every part must have left each sample's own label out.
    """
    rows = torch.arange(len(y))
    if len(y) > TRIED:
        rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:TRIED].sort().values
    some, given = [part[rows] for part in parts], y[rows]
    count = len(given)
    start = {"weights": torch.full((len(parts),), 5.0), "bias": torch.zeros(parts[0].shape[1])}

    def value(at: Parameters) -> tuple[float, Parameters]:
        logits = sum((w * part for w, part in zip(at["weights"], some, strict=True)), at["bias"])
        logs = torch.log_softmax(logits, 1)
        height = float(logs.gather(1, given[:, None]).mean()) - 1e-4 * float(at["bias"].square().mean())
        slope = logs.exp_().neg_()
        slope[torch.arange(count), given] += 1
        by_weight = torch.stack([torch.dot(slope.flatten(), part.flatten()) for part in some]) / count
        return height, {"weights": by_weight, "bias": slope.mean(0) - 2e-4 * at["bias"] / len(at["bias"])}

    at = maximize_likelihood(value, start, list(start), 50, count)
    return Stack(tuple(at["weights"].tolist()), at["bias"])


class ClassSeparability(NamedTuple):
    """Whether features tell the classes apart, by probes that share no sample."""

    between: float
    """Cohen's kappa of the two probes on samples that neither has seen."""
    with_labels: float
    """Their mean kappa with the given labels of these."""

    @property
    def doubt(self) -> float:
        """Share of the disagreement with labels that the probes have with one another too, 0..1 and a little above."""
        return (1 - self.between) / max(1 - self.with_labels, 1e-6)

    @property
    def cannot_tell(self) -> bool:
        """The probes contradict labels often, and one another nearly as often: their doubt says nothing of labels."""
        return 1 - self.with_labels > CONTRADICTED and self.doubt > DOUBT


DOUBT = 0.67
"""Above it features cannot tell; `benchmarks/audit.py` lists the value of every data set."""
CONTRADICTED = 0.35
"""1 - kappa with the labels, below which features are good enough whatever the doubt."""
THIRD = 4_000
"""Samples of each third, at the most."""


def class_separability(features: Any, y: Int[Tensor, " N"], classes: int, penalty: float) -> ClassSeparability:
    """Fit ridge probes on random thirds of the samples and compare two of them on the third of the other, each in turn.

    Where labels are wrong and features good, two probes agree with each other more than with the labels. Where
    features do not separate the classes, they differ from one another as much as from the labels.

    Args:
        features: [N, D].
        y: Given labels.
        classes: C.
        penalty: Of the ridge, as for all samples.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[: 3 * THIRD]
    thirds = [part.sort().values for part in order.chunk(3)]
    x = to_float32(features[torch.cat(thirds).numpy()])
    mean, std = mean_and_std(x)
    xs = torch.split((x - mean).div_(std), [len(part) for part in thirds])
    probes = [_probe(x, y[rows], classes, penalty) for x, rows in zip(xs, thirds, strict=True)]
    between, with_labels = [], []
    for k in range(3):
        one, other = ((xs[k] @ probes[j][0] + probes[j][1]).argmax(1) for j in range(3) if j != k)
        given = y[thirds[k]]
        between.append(cohen_kappa(one, other, classes))
        with_labels.append((cohen_kappa(one, given, classes) + cohen_kappa(other, given, classes)) / 2)
    return ClassSeparability(sum(between) / 3, sum(with_labels) / 3)


def _probe(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    target = functional.one_hot(y, classes).float()
    prior = target.mean(0)
    gram = x.T @ x + max(penalty, 30.0) * torch.eye(x.shape[1])
    return torch.cholesky_solve(x.T @ (target - prior), torch.linalg.cholesky(gram)), prior


def cohen_kappa(a: Int[Tensor, " N"], b: Int[Tensor, " N"], classes: int) -> float:
    """Cohen's kappa: agreement beyond chance, 1 at most, 0 by chance.

    Source: Cohen, Educational and Psychological Measurement 20, 1960.
    """
    chance = float((torch.bincount(a, minlength=classes) / len(a)) @ (torch.bincount(b, minlength=classes) / len(b)))
    return (float((a == b).float().mean()) - chance) / max(1 - chance, 1e-9)
