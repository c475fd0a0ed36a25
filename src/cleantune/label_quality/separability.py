"""Test of whether features separate the classes well enough to say which labels are wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.functional.standardize import mean_and_std, to_float32
from cleantune.label_quality.loo_ridge import loo_ridge

MAX_DISAGREEMENT_RATIO = 0.67
"""Ratio above which errors cannot be identified; `benchmarks/audit.py` lists the value of every data set."""
MIN_LABEL_DISAGREEMENT = 0.35
"""1 - kappa with the labels below which features are good enough whatever the ratio."""
MAX_THIRD = 4_000
"""Samples of each third, at most."""
MIN_PENALTY = 30.0


class ClassSeparability(NamedTuple):
    """Agreement of ridge probes that share no sample, with one another and with the labels."""

    probe_kappa: float
    """Cohen's kappa of two probes on samples that neither was fitted on."""
    label_kappa: float
    """Mean kappa of the probes with the given labels of these samples."""

    @property
    def disagreement_ratio(self) -> float:
        """Return the disagreement of the probes with one another as a fraction of that with the labels."""
        return (1 - self.probe_kappa) / max(1 - self.label_kappa, 1e-6)

    @property
    def identifiable(self) -> bool:
        """Return False where probes contradict the labels often, and one another nearly as often."""
        return 1 - self.label_kappa <= MIN_LABEL_DISAGREEMENT or self.disagreement_ratio <= MAX_DISAGREEMENT_RATIO

    @property
    def reason(self) -> str:
        """Return why label errors cannot be identified, empty where they can."""
        if self.identifiable:
            return ""
        return (
            "two probes that share no sample differ from one another nearly as much as from the labels"
            f" (Cohen's kappa {self.probe_kappa:.2f} and {self.label_kappa:.2f}):"
            " these features do not separate the classes well enough to say which labels are wrong"
        )


def class_separability(
    features: Any, y: Int[Tensor, " N"], num_classes: int, penalty: float | None = None
) -> ClassSeparability:
    """Fit ridge probes on random thirds of the samples and compare each two on the third that both left out.

    Where labels are wrong and features good, two probes agree with each other more than with the labels. Where
    features do not separate the classes, they differ from one another as much as from the labels.

    Args:
        features: [N, D].
        y: Given labels.
        num_classes: C.
        penalty: Ridge penalty of all samples; None chooses it.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[: 3 * MAX_THIRD]
    thirds = [part.sort().values for part in order.chunk(3)]
    x = to_float32(features[torch.cat(thirds).numpy()])
    if penalty is None:
        penalty = loo_ridge(x, y[torch.cat(thirds)], num_classes).penalty
    mean, std = mean_and_std(x)
    xs = torch.split((x - mean).div_(std), [len(part) for part in thirds])
    probes = [_fit_probe(x, y[rows], num_classes, penalty) for x, rows in zip(xs, thirds, strict=True)]
    between, with_labels = [], []
    for k in range(3):
        one, other = ((xs[k] @ probes[j][0] + probes[j][1]).argmax(1) for j in range(3) if j != k)
        given = y[thirds[k]]
        between.append(cohen_kappa(one, other, num_classes))
        with_labels.append((cohen_kappa(one, given, num_classes) + cohen_kappa(other, given, num_classes)) / 2)
    return ClassSeparability(sum(between) / 3, sum(with_labels) / 3)


def _fit_probe(
    x: Float[Tensor, "N D"], y: Int[Tensor, " N"], num_classes: int, penalty: float
) -> tuple[Float[Tensor, "D C"], Float[Tensor, " C"]]:
    target = functional.one_hot(y, num_classes).float()
    prior = target.mean(0)
    gram = x.T @ x + max(penalty, MIN_PENALTY) * torch.eye(x.shape[1])
    return torch.cholesky_solve(x.T @ (target - prior), torch.linalg.cholesky(gram)), prior


def cohen_kappa(a: Int[Tensor, " N"], b: Int[Tensor, " N"], num_classes: int) -> float:
    """Return Cohen's kappa: agreement beyond chance, 1 at most, 0 by chance.

    Source: Cohen, Educational and Psychological Measurement 20, 1960.
    """
    shares = [torch.bincount(labels, minlength=num_classes) / len(labels) for labels in (a, b)]
    chance = float(shares[0] @ shares[1])
    return (float((a == b).float().mean()) - chance) / max(1 - chance, 1e-9)
