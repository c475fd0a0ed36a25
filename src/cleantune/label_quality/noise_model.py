"""Class-conditional noise model: from class probabilities and given labels to the probability of a label error.

A network or probe that learned noisy labels gives p(x). The true class follows softmax(s log p(x)), with a sharpness s
above 1: wrong labels flatten probabilities. The noise model T_kj(x) is the chance that class k was labeled j. Both
explain the given label,

    P(given = j | x) = sum_k softmax(s log p(x))_k T_kj(x),

and Bayes' rule turns them into the probability that the given label is wrong.

Labels alone cannot separate an unsure model from an uncertain label: every s that is too small explains noise as the
model's doubt. Two sources of probabilities are treated differently:

- `probe`: leave-one-out probabilities of a linear probe on frozen features. They are calibrated to the given labels by
  construction, and the noise does not depend on how hard a sample is; s is fitted with T by likelihood.
- `network`: out-of-sample probabilities of networks that were trained on the noisy labels end to end. They partly
  learn people's mistakes, so the noise rate may rise with hardness; s is 2 / (1 - d), d the fraction of labels that
  the network disagrees with.

A probe cannot level off below 1 as a network can, so the plateau which noise leaves is explained by T. Probabilities
that are calibrated to noisy labels perfectly would be explained by s = 1 and no noise at all: take `network` for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.label_quality.noise_likelihood import (
    EXCLUDED_LOGIT,
    MIN_PROBABILITY,
    Likelihood,
    Parameters,
    maximize_likelihood,
)

Source = Literal["network", "probe"]
"""Origin of probabilities: a network trained on the labels end to end, or a probe on frozen features."""

SHARPNESS = 2.0
"""s (1 - d) of a network; `benchmarks/audit.py` shows that the results are flat around it."""
SHARPNESS_RANGE = (1.2, 3.5)
"""Values of s (1 - d) that the range of the noise rate covers."""
PROBE_RANGE = (0.6, 1.3)
"""Sharpness of a probe that the range covers, in units of the fitted one."""
NUM_STRATA = 8
"""Levels of hardness by which the noise of a network may differ."""
MAX_ROWS = 12_000
"""Samples that the noise model is fitted on, at most."""
MAX_CELLS = 400_000
"""Probabilities that the noise model is fitted on, at most, as long as `MIN_ROWS` samples are left."""
MIN_ROWS = 2_000
MAX_PAIRED_CLASSES = 2_000
"""Classes above which the confusions of the model replace those of the labels: C x C numbers are not fitted."""
PSEUDO_COUNT = 0.2
"""Wrong labels that every pair of classes begins with."""
FLIP_CONCENTRATION = 0.55
"""Concentration of label flips above which every class keeps its main targets only."""
MIN_FLIP_FRACTION = 0.02
"""Fraction of wrong labels below which flips have no pattern: the few are confusions of the probe."""
MAIN_TARGET_FRACTION = 0.5
"""A main target of a class gets at least this many times the flips of the one that gets most."""
STRAY_FRACTION = 0.05
"""Fraction of a class's wrong labels that may name any other class all the same."""
_MAX_STEPS, _MAX_WARM_STEPS = 60, 12


class CalibratedLabels(NamedTuple):
    """Posterior of the true classes under a noise model."""

    p_wrong: Float[Tensor, " N"]
    """Probability that the given label is wrong."""
    suggested: Int[Tensor, " N"]
    """Most probable true class; the given one where that is it."""
    confidence: Float[Tensor, " N"]
    """Probability of the suggested class."""
    posterior: Float[Tensor, "N C"]
    """Probability of every class to be the true one."""


@dataclass(frozen=True)
class NoiseModel:
    """Fitted model of how given labels arise from true classes."""

    sharpness: float
    rate: Float[Tensor, " C"]
    """Logit of the noise rate of each true class, before hardness is added."""
    hardness: Float[Tensor, " B"]
    """Logit that each stratum of hardness adds."""
    edges: Float[Tensor, " B-1"]
    """Limits of the strata, in nats of the largest probability."""
    others: Float[Tensor, "C C"]
    """Distribution of wrong labels (column) by true class (row); the diagonal is zero."""
    local: float
    """Fraction of wrong labels that follow the sample's own probabilities instead of `others`."""
    local_sharpness: float
    loss: float
    """Mean negative log-likelihood of the given labels, in nats."""
    is_concentrated: bool = False
    """True if wrong labels of a class are restricted to its main targets."""

    def calibrate(self, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> CalibratedLabels:
        """Return the posterior of the true classes of a block of samples.

        Args:
            p: Class probabilities.
            y: Given labels.
        """
        joint = self._joint(_log(p), y)
        posterior = joint / joint.sum(1, keepdim=True).clamp(min=1e-30)
        best = posterior.max(1)
        wrong = (1 - posterior.gather(1, y[:, None])[:, 0]).clamp(0, 1)
        return CalibratedLabels(wrong, best.indices, best.values, posterior)

    def flips(self, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, "C C"]:
        """Return the expected number of labels j (column) whose true class is k (row); the diagonal is zero."""
        num_classes = p.shape[1]
        joint = torch.zeros(num_classes, num_classes).index_add_(0, y, self.calibrate(p, y).posterior).T
        return joint * (1 - torch.eye(num_classes))

    def flip_concentration(self, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> float:
        """Return the concentration of label flips, 0 where too few labels are wrong to have a pattern."""
        flips = self.flips(p, y)
        return concentration_of_flips(flips) if float(flips.sum()) >= MIN_FLIP_FRACTION * len(y) else 0.0

    def _joint(self, log_p: Tensor, y: Tensor) -> Tensor:
        """Return P(true = k, given = y | x) of every class k: [N, C]."""
        stratum = torch.bucketize(log_p.max(1).values, self.edges)
        nu = torch.sigmoid(self.rate + self.hardness[stratum][:, None])
        model = torch.softmax(self.sharpness * log_p, 1)
        named = self.others[:, y].T
        if self.local > 0:
            q = torch.softmax(self.local_sharpness * log_p, 1)
            local = (q.gather(1, y[:, None]) / (1 - q).clamp(min=MIN_PROBABILITY)).clamp(max=1)
            named = (1 - self.local) * named + self.local * local
        given = functional.one_hot(y, log_p.shape[1]).bool()
        return torch.where(given, model * (1 - nu), model * nu * named)


def _log(p: Tensor) -> Tensor:
    p = p.float().clamp(min=MIN_PROBABILITY)
    return (p / p.sum(1, keepdim=True)).log()


def fit_noise_model(
    p: Float[Tensor, "N C"],
    y: Int[Tensor, " N"],
    sharpness: float | None = None,
    num_strata: int = 1,
    warm_start: NoiseModel | None = None,
) -> NoiseModel:
    """Fit the noise model of highest penalized likelihood by L-BFGS.

    Weak priors keep rare classes in place: every pair of classes begins with 0.2 wrong labels, rates by class vary
    by one in the logit, neighboring strata by a half.

    Args:
        p: Probabilities, none of which was learned from its own label.
        y: Given labels.
        sharpness: s; None fits it.
        num_strata: Levels of hardness; with more than one, wrong labels may also follow the sample's own
            probabilities.
        warm_start: Fitted model to continue from for a few steps.
    """
    log_p, num_classes, count = _log(p), p.shape[1], len(y)
    hard = log_p.max(1).values
    quantiles = torch.linspace(0, 1, num_strata + 1)[1:-1]
    edges = torch.quantile(hard, quantiles) if num_strata > 1 else hard.new_zeros(0)
    stratum = torch.bucketize(hard, edges)
    off_diagonal = 1 - torch.eye(num_classes)
    likelihood = Likelihood(log_p, y, stratum, num_strata, sharpness)

    def value(at: Parameters) -> tuple[float, Parameters]:
        height, slope = likelihood(at)
        others = torch.log_softmax(at["named"].clone().fill_diagonal_(EXCLUDED_LOGIT), 1)
        step = at["level"].diff()
        prior = PSEUDO_COUNT * float((others * off_diagonal).sum()) - 0.5 * float(at["rate"].square().sum())
        prior -= 2 * float(step.square().sum())
        slope["named"] += PSEUDO_COUNT * (off_diagonal - (num_classes - 1) * others.exp()) / count
        slope["rate"] -= at["rate"] / count
        slope["level"] -= 4 * (functional.pad(step, (1, 0)) - functional.pad(step, (0, 1))) / count
        if sharpness is None:
            distance = float(at["log_s"]) - math.log(1.5)
            prior -= 2 * distance * distance
            slope["log_s"] -= 4 * distance / count
        return height + prior / count, slope

    free = ["named"] if num_classes <= MAX_PAIRED_CLASSES else []
    free += ["rate", "level"] + (["log_s"] if sharpness is None else [])
    if num_strata > 1:
        free += ["local", "local_log_s"]
    start = _initial_parameters(log_p, y, sharpness, num_strata, warm_start)
    max_steps = _MAX_STEPS if warm_start is None else _MAX_WARM_STEPS
    at = maximize_likelihood(value, start, free, max_steps, count)
    return NoiseModel(
        sharpness=float(at["log_s"].exp()),
        rate=at["rate"],
        hardness=at["level"],
        edges=edges,
        others=torch.softmax(at["named"].clone().fill_diagonal_(EXCLUDED_LOGIT), 1),
        local=float(torch.sigmoid(at["local"])) if num_strata > 1 else 0.0,
        local_sharpness=float(at["local_log_s"].exp()),
        loss=-likelihood(at)[0],
    )


def _initial_parameters(
    log_p: Tensor, y: Tensor, sharpness: float | None, num_strata: int, warm_start: NoiseModel | None
) -> Parameters:
    """Return the confusions of the probabilities themselves, or the parameters of a fitted model."""
    num_classes = log_p.shape[1]
    if warm_start is not None:
        named = warm_start.others.clamp(min=1e-9).log()
        rate, noise_rate = warm_start.rate, float(torch.sigmoid(warm_start.hardness.mean()))
    else:
        model = torch.softmax(SHARPNESS * log_p, 1)
        counts = torch.zeros(num_classes, num_classes).index_add_(0, y, model).T * (1 - torch.eye(num_classes))
        named = (counts + PSEUDO_COUNT + 0.05 * counts.sum(1, keepdim=True) / num_classes).log()
        rate, noise_rate = torch.zeros(num_classes), 0.5 * float((model.argmax(1) != y).float().mean())
        noise_rate = min(max(noise_rate, 0.01), 0.49)
    return {
        "named": named,
        "rate": rate,
        "level": torch.full((num_strata,), math.log(noise_rate / (1 - noise_rate))),
        "log_s": torch.tensor(math.log(sharpness or SHARPNESS)),
        "local": torch.tensor(-1.0),
        "local_log_s": torch.tensor(0.0),
    }


def concentration_of_flips(flips: Float[Tensor, "C C"]) -> float:
    """Return the concentration of label flips: 0 where wrong labels name all others alike, 1 where always the same.

    It is the fraction that names the class which most of them name, beyond the 1 / (C - 1) of chance; 0 for two
    classes.

    Args:
        flips: Number of labels of class j (column) that are of class k (row); the diagonal is zero.
    """
    chance = 1 / max(len(flips) - 1, 1)
    total = float(flips.sum())
    if chance == 1 or total <= 0:
        return 0.0
    return (float(flips.max(1).values.sum()) / total - chance) / (1 - chance)


def main_targets(flips: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """Return the distribution of wrong labels (column) by true class (row) over the class's main targets.

    Targets with less than half of the most flips of their row count as confusions of the probe; a small fraction of a
    row is spread over all other classes, so that no label is impossible. The diagonal is zero.

    Args:
        flips: Number of labels of class j that are of class k; the diagonal is zero.

    Source: ours, instead of a prior under which few flips are probable: likelihood would keep confusions.
    """
    num_classes = len(flips)
    off_diagonal = 1 - torch.eye(num_classes)
    is_main = flips >= MAIN_TARGET_FRACTION * flips.max(1, keepdim=True).values
    main = torch.where(is_main, flips, torch.zeros(())) * off_diagonal + 1e-9 * off_diagonal
    main = main / main.sum(1, keepdim=True)
    return (1 - STRAY_FRACTION) * main + STRAY_FRACTION * off_diagonal / max(num_classes - 1, 1)


def concentrate(model: NoiseModel, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> NoiseModel:
    """Restrict wrong labels to the main targets of their class.

    Where the wrong labels of a class name few others, most flips between other classes that the model finds are the
    probe's own confusions, which likelihood cannot separate from noise. Kept, they cast doubt on correct labels, above
    all in a class that lost samples and gained none.

    Args:
        model: Fitted model.
        p: Probabilities that it was fitted on.
        y: Their given labels.
    """
    return replace(model, others=main_targets(model.flips(p, y)), is_concentrated=True)


def subsample_rows(count: int, num_classes: int) -> Int[Tensor, " M"]:
    """Return the samples that a noise model is fitted on: all, or a random part, in their order."""
    most = min(MAX_ROWS, max(MAX_CELLS // num_classes, MIN_ROWS))
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def disagreement_fraction(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> float:
    """Return the fraction d of labels that are not the most probable class."""
    return float((p.argmax(1) != y).float().mean())


def fit_noise_model_family(
    p: Float[Tensor, "N C"], y: Int[Tensor, " N"], source: Source, threshold: float, *, with_range: bool = True
) -> list[NoiseModel]:
    """Fit the noise model, and after it those that the range of the noise rate covers.

    Args:
        p: Probabilities of the samples that are fitted on.
        y: Their given labels.
        source: Origin of the probabilities.
        threshold: Concentration of label flips above which the model of a probe is restricted to main targets.
        with_range: Fit the models of the range.
    """
    if source == "probe":
        first = fit_noise_model(p, y)
        models = [first]
        if with_range:
            s = first.sharpness
            models += [fit_noise_model(p, y, factor * s, warm_start=first) for factor in PROBE_RANGE]
            models.append(fit_noise_model(p, y, PROBE_RANGE[1] * s, NUM_STRATA, first))
        if first.flip_concentration(p, y) > threshold:
            models = [concentrate(model, p, y) for model in models]
        return models
    d = min(disagreement_fraction(p, y), 0.9)
    middle = math.sqrt(SHARPNESS * SHARPNESS_RANGE[0]), math.sqrt(SHARPNESS * SHARPNESS_RANGE[1])
    values = (SHARPNESS, *SHARPNESS_RANGE, *middle) if with_range else (SHARPNESS,)
    return [fit_noise_model(p, y, s / (1 - d), NUM_STRATA) for s in values]
