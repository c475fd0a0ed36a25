"""Class probabilities that were not learned from the sample's own label, and the probability of a label error.

A first ridge probe is fitted to all labels alike. Where wrong labels follow a pattern it has learned much of that, so
further probes weight each label by the probability that it is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional.selection import balance_weights, within_class_quota
from cleantune.label_quality.logit_scaling import LogitScaling, fit_logit_scaling
from cleantune.label_quality.loo_ridge import BLOCK_ROWS, Ridge, loo_ridge, weighted_loo_ridge
from cleantune.label_quality.noise_model import (
    FLIP_CONCENTRATION,
    CalibratedLabels,
    NoiseModel,
    concentrate,
    fit_noise_model,
    subsample_rows,
)

CLASS_PRIOR_BALANCE = 0.5
"""Assumption about class sizes where label flips are concentrated: 0 as given, 1 equal."""
MIN_RATE_RATIO = 0.8
"""Noise rate of the second probe below which it is discarded, as a fraction of that of the first."""
NUM_CONCENTRATED_PROBES = 3
"""Probes in sequence where label flips are concentrated; a fourth changes little."""


@dataclass(frozen=True)
class NoisePosterior:
    """Scaled ridge probe with the noise model that is fitted to its leave-one-out probabilities."""

    ridge: Ridge
    scaling: LogitScaling
    log_prior: Float[Tensor, " C"]
    """Logits that are subtracted: `class_prior_balance` times the logarithm of the class sizes."""
    model: NoiseModel

    def probabilities(self, scores: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Return the class probabilities of scores."""
        return (self.scaling.logits(scores) - self.log_prior).softmax(1)

    def calibrate(self, y: Int[Tensor, " N"]) -> CalibratedLabels:
        """Return the posterior of the true classes of the samples that the probe was fitted on."""
        blocks = zip(torch.split(self.ridge.loo, BLOCK_ROWS), torch.split(y, BLOCK_ROWS), strict=True)
        parts = [self.model.calibrate(self.probabilities(scores), given) for scores, given in blocks]
        return CalibratedLabels(*(torch.cat(values) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class LeaveOneOutProbe:
    """Ridge probes whose class probabilities are averaged: of each sample without its own label, and of new ones."""

    posteriors: tuple[NoisePosterior, ...]

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """Return the mean of the features."""
        return self.posteriors[0].ridge.mean

    @property
    def std(self) -> Float[Tensor, " D"]:
        """Return the standard deviation of the features."""
        return self.posteriors[0].ridge.std

    def loo_probabilities(self) -> Float[Tensor, "N C"]:
        """Return the probabilities of the samples that the probes were fitted on."""
        return _geometric_mean([part.probabilities(part.ridge.loo) for part in self.posteriors])

    def probabilities(self, features: Any) -> Float[Tensor, "M C"]:
        """Return the probabilities of other samples.

        Args:
            features: [M, D], an array or memory-mapped.
        """
        return _geometric_mean([part.probabilities(part.ridge.scores(features)) for part in self.posteriors])

    def linear(self) -> tuple[Float[Tensor, "D C"], Float[Tensor, " C"]]:
        """Return weight and bias on standardized features whose softmax is `probabilities`."""
        weights = [part.scaling.scale * part.ridge.weight for part in self.posteriors]
        biases = [part.scaling.logits(part.ridge.bias) - part.log_prior for part in self.posteriors]
        return torch.stack(weights).mean(0), torch.stack(biases).mean(0)


def _geometric_mean(probabilities: list[Float[Tensor, "N C"]]) -> Float[Tensor, "N C"]:
    if len(probabilities) == 1:
        return probabilities[0]
    return torch.stack([p.clamp(min=1e-30).log() for p in probabilities]).mean(0).softmax(1)


def fit_loo_probe(
    features: Any,
    y: Int[Tensor, " N"],
    num_classes: int,
    class_prior_balance: float = CLASS_PRIOR_BALANCE,
    flip_concentration: float = FLIP_CONCENTRATION,
) -> LeaveOneOutProbe:
    """Fit ridge probes to labels of which some are wrong.

    The second probe weights each label by the probability that it is right under the first; their probabilities are
    averaged. The second alone may explain much noise by unsure probabilities; it is discarded where it finds far fewer
    wrong labels. Where label flips are concentrated, the noise model keeps the main targets of each class, three probes
    follow one another, and the last one counts alone. `dev/LOG.md` compares the alternatives.

    Wrong labels that name any class alike leave large classes large. Concentrated flips make a class large that
    receives them, so the prior balances the class sizes in proportion to the concentration.

    Linear in N; memory is D^2 and N x C.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        num_classes: C.
        class_prior_balance: Power of 1 / class size in the prior: 1 assumes that all classes are equally probable, so
            that a class is large because it received wrong labels; 0 that its size is right.
        flip_concentration: Concentration of label flips above which each class keeps its main targets; 1 never.

    Source: ours.
    """
    fitter = _Fitter(features, y, num_classes)
    first = fitter.fit(fitter.ridge, 0.0)
    concentration = fitter.concentration(first)
    balance = class_prior_balance * min(concentration / max(flip_concentration, 1e-9), 1.0)
    is_concentrated = concentration > flip_concentration
    if balance > 0 or is_concentrated:
        first = fitter.fit(fitter.ridge, balance, is_concentrated)
    second = fitter.refit(first, balance, is_concentrated)
    if is_concentrated:
        for _ in range(NUM_CONCENTRATED_PROBES - 2):
            second = fitter.refit(second, balance, is_concentrated)
        return LeaveOneOutProbe((second,))
    rates = [float(part.calibrate(y).p_wrong.mean()) for part in (first, second)]
    return LeaveOneOutProbe((first, second) if rates[1] >= MIN_RATE_RATIO * rates[0] else (first,))


class _Fitter:
    """Fits probes with their noise models to the same samples."""

    def __init__(self, features: Any, y: Int[Tensor, " N"], num_classes: int) -> None:
        self.features, self.y, self.num_classes = features, y, num_classes
        self.ridge = loo_ridge(features, y, num_classes)
        self.rows = subsample_rows(len(y), num_classes)
        self.log_size = torch.bincount(y, minlength=num_classes).clamp(min=1).log()

    def fit(self, ridge: Ridge, balance: float, is_concentrated: bool = False) -> NoisePosterior:
        """Scale a probe, and fit the noise model to its leave-one-out probabilities."""
        scaling, log_prior = fit_logit_scaling(ridge.loo, self.y), balance * self.log_size
        p, given = (scaling.logits(ridge.loo[self.rows]) - log_prior).softmax(1), self.y[self.rows]
        model = fit_noise_model(p, given)
        return NoisePosterior(ridge, scaling, log_prior, concentrate(model, p, given) if is_concentrated else model)

    def refit(self, last: NoisePosterior, balance: float, is_concentrated: bool) -> NoisePosterior:
        """Fit a probe to labels that are weighted by the probability that they are right."""
        wrong = last.calibrate(self.y).p_wrong
        trust = (1 - wrong) * within_class_quota(wrong, self.y, self.num_classes, balance)
        weight = balance_weights(trust, self.y, self.num_classes, balance)
        return self.fit(weighted_loo_ridge(self.features, self.y, self.ridge, weight), balance, is_concentrated)

    def concentration(self, posterior: NoisePosterior) -> float:
        """Return the concentration of the label flips under a noise model."""
        p = posterior.probabilities(posterior.ridge.loo[self.rows])
        return posterior.model.flip_concentration(p, self.y[self.rows])
