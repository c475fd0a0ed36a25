"""The cut-off: from class probabilities and given labels to a calibrated probability that each label is wrong.

A network or probe that learned noisy labels gives p(x). Where the true label were the only thing it is unsure of,
the true class would follow softmax(s log p(x)), with a sharpness s above 1: wrong labels flatten probabilities.
Beside it stands a model of the noise, T_kj(x), the chance that class k was written as j. Both together explain the
given label,

    P(given = j | x) = sum_k softmax(s log p(x))_k T_kj(x),

and Bayes' rule turns them into the probability that the given label is wrong.

Labels alone cannot tell an unsure model from an uncertain label: every s that is too small explains noise as the
model's doubt. Two settings are told apart by where the probabilities come from:

- `probe`: leave-one-out probabilities of a linear probe on frozen features (`leave_one_out`). They are calibrated
  to the given labels by construction, and the noise does not depend on how hard a sample is; s is fitted with T by
  likelihood.
- `network`: out-of-sample probabilities of networks that learned the noisy labels whole. They partly learn people's
  mistakes, so the noise may rise with hardness; s is 2 / (1 - d), d the share of labels that the network
  contradicts.

A probe cannot level off below 1 as a network can, so that the plateau which noise leaves falls to T. Probabilities
that are calibrated to noisy labels perfectly would be explained by s = 1 and no noise at all: take `network` for them.

The interval repeats the fit over a range of s and takes each label's lowest and highest probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.label_quality.noise_likelihood import FAR, Likelihood, Parameters, maximize_likelihood

Source = Literal["network", "probe"]
"""Where probabilities come from: a network that learned the labels whole, or a probe on frozen features."""

SHARPNESS = 2.0
"""s (1 - d) of a network; `benchmarks/audit.py` shows that the results are flat around it."""
SHARPNESS_RANGE = (1.2, 3.5)
"""What s (1 - d) may be; the interval covers it."""
PROBE_RANGE = (0.6, 1.3)
"""What the sharpness of a probe may be, in units of the fitted one."""
STRATA = 8
"""Levels of hardness by which the noise of a network may differ."""
FITTED = 12_000
"""Samples that the noise model is fitted on, at the most."""
CELLS = 400_000
"""Probabilities that the noise model is fitted on, at the most, as long as 2,000 samples are left."""
PAIRED = 2_000
"""Classes above which the confusions of the model stand for those of the labels: C x C numbers are not fitted."""
PSEUDO = 0.2
"""Wrong labels that every pair of classes begins with."""
TINY = 1e-6
_STEPS, _FEW = 60, 12


class CalibratedLabels(NamedTuple):
    """What a noise model says about labels."""

    p_wrong: Float[Tensor, " N"]
    suggested: Int[Tensor, " N"]
    """The most probable true class; the given one where that is it."""
    confidence: Float[Tensor, " N"]
    """Its probability."""
    truth: Float[Tensor, "N C"]
    """Probability of every class to be the true one."""


@dataclass(frozen=True)
class NoiseModel:
    """A fitted model of how given labels came about."""

    sharpness: float
    rate: Float[Tensor, " C"]
    """Logit of the noise rate of each true class, at no hardness."""
    hardness: Float[Tensor, " B"]
    """Added to it in each stratum of hardness."""
    edges: Float[Tensor, " B-1"]
    """Between the strata, in nats of the largest probability."""
    others: Float[Tensor, "C C"]
    """Which class a wrong label names, by true class; the diagonal is zero."""
    local: float
    """Share of wrong labels that follow the sample's own probabilities instead of `others`."""
    local_sharpness: float
    cross_entropy_per_sample: float
    """Mean negative log-likelihood of the given labels."""

    def judge(self, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> CalibratedLabels:
        """The labels of one block.

        Args:
            p: Class probabilities.
            y: Given labels.
        """
        joint = self._joint(_log(p), y)
        truth = joint / joint.sum(1, keepdim=True).clamp(min=1e-30)
        best = truth.max(1)
        wrong = (1 - truth.gather(1, y[:, None])[:, 0]).clamp(0, 1)
        return CalibratedLabels(wrong, best.indices, best.values, truth)

    def flips(self, p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> Float[Tensor, "C C"]:
        """How many of these labels j (column) it holds to be of class k (row); the diagonal is zero."""
        classes = p.shape[1]
        named = torch.zeros(classes, classes).index_add_(0, y, self.judge(p, y).truth).T
        return named * (1 - torch.eye(classes))

    def _joint(self, lp: Tensor, y: Tensor) -> Tensor:
        stratum = torch.bucketize(lp.max(1).values, self.edges)
        nu = torch.sigmoid(self.rate + self.hardness[stratum][:, None])
        return _joint(lp, y, self.sharpness, nu, self.others, self.local, self.local_sharpness)


def _log(p: Tensor) -> Tensor:
    p = p.float().clamp(min=TINY)
    return (p / p.sum(1, keepdim=True)).log()


def _joint(lp: Tensor, y: Tensor, s: Tensor | float, nu: Tensor, others: Tensor, local: Tensor | float,
           local_s: Tensor | float) -> Tensor:  # fmt: skip
    """P(true = k, given = y | x) of every k: [N, C]."""
    m = torch.softmax(s * lp, 1)
    named = others[:, y].T
    if isinstance(local, Tensor) or local > 0:
        q = torch.softmax(local_s * lp, 1)
        own = (q.gather(1, y[:, None]) / (1 - q).clamp(min=TINY)).clamp(max=1)
        named = (1 - local) * named + local * own
    given = functional.one_hot(y, lp.shape[1]).bool()
    return torch.where(given, m * (1 - nu), m * nu * named)


def fit_noise_model(
    p: Float[Tensor, "N C"],
    y: Int[Tensor, " N"],
    sharpness: float | None = None,
    strata: int = 1,
    begin: NoiseModel | None = None,
) -> NoiseModel:
    """The noise model of highest likelihood, by L-BFGS on slopes that are written out.

    Weak priors keep rare classes in place: every pair of classes begins with 0.2 wrong labels, rates by class vary
    by one in the logit, neighboring strata by a half.

    Args:
        p: Probabilities, none of which was learned from its own label.
        y: Given labels.
        sharpness: s; None fits it.
        begin: A fitted model to go on from, for a few steps.
        strata: Levels of hardness; with more than one, wrong labels may also follow the sample's own probabilities.
    """
    lp, classes, count = _log(p), p.shape[1], len(y)
    hard = lp.max(1).values
    edges = torch.quantile(hard, torch.linspace(0, 1, strata + 1)[1:-1]) if strata > 1 else hard.new_zeros(0)
    stratum = torch.bucketize(hard, edges)
    apart = 1 - torch.eye(classes)
    # begins with the confusions of the model itself
    m = torch.softmax(SHARPNESS * lp, 1)
    seen = torch.zeros(classes, classes).index_add_(0, y, m).T * apart
    named = (seen + PSEUDO + 0.05 * seen.sum(1, keepdim=True) / classes).log()
    half = min(max(0.5 * float((m.argmax(1) != y).float().mean()), 0.01), 0.49)
    if begin is not None:
        named, half = begin.others.clamp(min=1e-9).log(), float(torch.sigmoid(begin.hardness.mean()))
    start = {
        "named": named,
        "rate": torch.zeros(classes) if begin is None else begin.rate,
        "level": torch.full((strata,), math.log(half / (1 - half))),
        "log_s": torch.tensor(math.log(sharpness or SHARPNESS)),
        "local": torch.tensor(-1.0),
        "local_log_s": torch.tensor(0.0),
    }
    likelihood = Likelihood(lp, y, stratum, strata, sharpness)

    def value(at: Parameters) -> tuple[float, Parameters]:
        height, slope = likelihood(at)
        others = torch.log_softmax(at["named"].clone().fill_diagonal_(FAR), 1)
        step = at["level"].diff()
        prior = PSEUDO * float((others * apart).sum()) - 0.5 * float(at["rate"].square().sum())
        prior -= 2 * float(step.square().sum())
        slope["named"] += PSEUDO * (apart - (classes - 1) * others.exp()) / count
        slope["rate"] -= at["rate"] / count
        slope["level"] -= 4 * (functional.pad(step, (1, 0)) - functional.pad(step, (0, 1))) / count
        if sharpness is None:
            away = float(at["log_s"]) - math.log(1.5)
            prior -= 2 * away * away
            slope["log_s"] -= 4 * away / count
        return height + prior / count, slope

    free = [*(["named"] if classes <= PAIRED else []), "rate", "level", *(["log_s"] if sharpness is None else [])]
    if strata > 1:
        free += ["local", "local_log_s"]
    at = maximize_likelihood(value, start, free, _STEPS if begin is None else _FEW, count)
    return NoiseModel(
        float(at["log_s"].exp()), at["rate"], at["level"], edges,
        torch.softmax(at["named"].clone().fill_diagonal_(FAR), 1),
        float(torch.sigmoid(at["local"])) if strata > 1 else 0.0, float(at["local_log_s"].exp()), -likelihood(at)[0],
    )  # fmt: skip


def subsample_rows(count: int, classes: int) -> Int[Tensor, " M"]:
    """The samples that a noise model is fitted on: all, or a random part, in their order."""
    most = min(FITTED, max(CELLS // classes, 2000))
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def disagreement_fraction(p: Float[Tensor, "N C"], y: Int[Tensor, " N"]) -> float:
    """d, the share of labels that are not the most probable class."""
    return float((p.argmax(1) != y).float().mean())


def fit_noise_model_family(p: Float[Tensor, "N C"], y: Int[Tensor, " N"], source: Source) -> list[NoiseModel]:
    """The noise model of the default, and after it those that the interval covers.

    Args:
        p: Probabilities of the samples that are fitted on.
        y: Their given labels.
        source: Where they come from.
    """
    if source == "probe":
        first = fit_noise_model(p, y)
        s = first.sharpness
        low, high = (fit_noise_model(p, y, factor * s, begin=first) for factor in PROBE_RANGE)
        return [first, low, high, fit_noise_model(p, y, PROBE_RANGE[1] * s, STRATA, first)]
    seen = min(disagreement_fraction(p, y), 0.9)
    middle = math.sqrt(SHARPNESS * SHARPNESS_RANGE[0]), math.sqrt(SHARPNESS * SHARPNESS_RANGE[1])
    return [fit_noise_model(p, y, s / (1 - seen), STRATA) for s in (SHARPNESS, *SHARPNESS_RANGE, *middle)]


def f_beta_threshold(p_wrong: Float[Tensor, " N"], beta: float = 1.0) -> float:
    """The probability from which on labels are called wrong, so that the expected F-measure is largest.

    With calibrated probabilities the best cut is half the F1 it reaches: low where wrong labels are hard to find.

    Args:
        p_wrong: Calibrated probabilities.
        beta: beta of the F-measure: 1 weighs precision and recall alike, 2 recall more, 0.5 precision more.

    Source: Lipton, Elkan & Naryanaswamy, ECML 2014 (arXiv:1402.1892).
    """
    ranked = p_wrong.double().sort(descending=True).values
    found = ranked.cumsum(0)
    weight = beta * beta
    flagged = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    value = (1 + weight) * found / (weight * ranked.sum() + flagged).clamp(min=1e-12)
    return float(ranked[value.argmax()]) if float(ranked.sum()) > 0.5 else 1.0 + TINY


def label_scores(p: Float[Tensor, "N C"], y: Int[Tensor, " N"], p_wrong: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The default `label_score`, 0..1, lower is worse.

    The geometric mean of the self-confidence and of the probability that the label is right: the first ranks noise
    without a pattern best, the second noise between few classes.
    """
    own = p.float().gather(1, y[:, None])[:, 0].clamp(min=0)
    return (own * (1 - p_wrong).clamp(min=0)).sqrt()


def calibrate(score: Float[Tensor, " N"], p_wrong: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Probabilities that fall as the score rises, with the same mean: isotonic regression of p_wrong on the score."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(increasing=False, y_min=0.0, y_max=1.0).fit_transform(
        score.double().numpy(), p_wrong.double().numpy()
    )
    return torch.from_numpy(fitted).float()
