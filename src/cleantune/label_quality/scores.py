"""The scorer of labels that selection, label lists and audits share.

Class probabilities that were not learned from the sample's own label come from `fit_loo_probe`, or from the user. A
noise model turns them into the probability that each label is wrong, into scores, and into noise rates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.functional.standardize import to_float32
from cleantune.label_quality import detectors
from cleantune.label_quality.annotators import dawid_skene_posterior
from cleantune.label_quality.noise_model import (
    FLIP_CONCENTRATION,
    NoiseModel,
    Source,
    fit_noise_model_family,
    subsample_rows,
)
from cleantune.label_quality.noise_range import NoiseRange, transition_matrix
from cleantune.label_quality.posterior import CLASS_PRIOR_BALANCE, LeaveOneOutProbe, fit_loo_probe
from cleantune.label_quality.separability import ClassSeparability, class_separability, cohen_kappa

BLOCK_CELLS = 2_000_000
"""Probabilities that are in memory at a time."""
MIN_KAPPA = 0.1
"""Cohen's kappa of the probabilities with the labels, below which they say nothing about label errors."""
NO_THRESHOLD = 1.0 + 1e-6
"""Threshold that no probability reaches."""


@dataclass
class LabelScores:
    """Scores of N given labels, and the noise that they add up to."""

    label_score: Float[Tensor, " N"]
    """Score of the given label: 0 surely wrong, 1 surely right."""
    p_wrong: Float[Tensor, " N"]
    """Calibrated probability that the given label is wrong; falls as the score rises."""
    is_issue: Bool[Tensor, " N"]
    """True if `p_wrong` reaches the threshold."""
    suggested: Int[Tensor, " N"]
    """Most probable true class."""
    confidence: Float[Tensor, " N"]
    """Probability of the suggested class."""
    threshold: float
    """Probability from which on a label is listed as wrong; best for the expected F-beta."""
    noise_rate: float
    """Fraction of wrong labels."""
    noise_rate_range: tuple[float, float]
    by_class: Float[Tensor, "C 3"]
    """Noise rate of each given class, with its lowest and highest value."""
    transition: Float[Tensor, "C C"]
    """P(given = column | true = row)."""
    transition_range: Float[Tensor, "2 C C"]
    """Lowest and highest transition matrix."""
    sharpness: float
    """Sharpness s of the noise model."""
    reason: str = ""
    """Explanation why label errors cannot be identified, empty where they can."""
    detectors: dict[str, Float[Tensor, " N"]] = field(default_factory=dict)
    """Scores of single detectors by name, 0 to 1, lower is worse."""
    probe: LeaveOneOutProbe | None = None
    """Probe on features, None where probabilities were given."""
    separability: ClassSeparability | None = None

    @property
    def identifiable(self) -> bool:
        """Return whether wrong labels can be distinguished from an unsure model."""
        return not self.reason


def score_labels(
    features: Any,
    y: Int[Tensor, " N"],
    num_classes: int,
    *,
    held_out: tuple[Any, Int[Tensor, " M"]] | None = None,
    beta: float = 1.0,
    class_prior_balance: float = CLASS_PRIOR_BALANCE,
    flip_concentration: float = FLIP_CONCENTRATION,
    annotators: Int[np.ndarray, "A L"] | None = None,
) -> LabelScores:
    """Score labels by frozen features.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        num_classes: C.
        held_out: Features and labels of further samples, such as a validation split. Probe and noise model are not
            fitted to them; their scores follow those of the first N.
        beta: As in `score_probabilities`.
        class_prior_balance: As in `fit_loo_probe`.
        flip_concentration: As in `fit_loo_probe`.
        annotators: As in `score_probabilities`.
    """
    probe = fit_loo_probe(features, y, num_classes, class_prior_balance, flip_concentration)
    p = probe.loo_probabilities()
    if held_out is not None:
        p, y = torch.cat([p, probe.probabilities(held_out[0])]), torch.cat([y, held_out[1]])
    count = len(features)
    separability = class_separability(features, y[:count], num_classes, probe.posteriors[0].ridge.penalty)
    out = score_probabilities(
        p, y, "probe", beta=beta, flip_concentration=flip_concentration, annotators=annotators, num_fitted=count,
        reason=separability.reason,
    )  # fmt: skip
    out.probe, out.separability = probe, separability
    return out


def score_probabilities(
    p: Any,
    y: Int[Tensor, " N"],
    source: Source = "network",
    *,
    beta: float = 1.0,
    flip_concentration: float = FLIP_CONCENTRATION,
    annotators: Int[np.ndarray, "A N"] | None = None,
    num_fitted: int | None = None,
    reason: str = "",
) -> LabelScores:
    """Score labels by class probabilities, none of which was learned from its own label.

    Args:
        p: [N, C], an array or memory-mapped; it is read in blocks.
        y: Given labels.
        source: Origin of the probabilities.
        beta: beta of the F-measure that the threshold maximizes: 1 weighs precision and recall alike.
        flip_concentration: Concentration of label flips above which the model of a probe restricts each class to its
            main targets.
        annotators: Labels of A annotators, -1 where one gave none.
        num_fitted: Number of leading samples that the noise model is fitted on; None takes all.
        reason: Explanation why label errors cannot be identified, where that is known.
    """
    num_fitted = len(y) if num_fitted is None else num_fitted
    rows = subsample_rows(num_fitted, p.shape[1])
    sample, given = to_float32(p[rows.numpy()]), y[rows]
    models = fit_noise_model_family(sample, given, source, flip_concentration)
    part = _apply(p, y, models[0], annotators)
    score = part.label_score(models[0].is_concentrated or annotators is not None)
    p_wrong = calibrate(score, part.p_wrong, num_fitted)
    kappa = cohen_kappa(part.predicted, y, p.shape[1])
    if not reason and kappa < MIN_KAPPA:
        reason = f"the probabilities agree with the labels hardly more than by chance (Cohen's kappa {kappa:.2f})"
    threshold = NO_THRESHOLD if reason else f_beta_threshold(p_wrong, beta)
    rate, transition, spread = float(p_wrong.mean()), transition_matrix(part.joint), NoiseRange(models, sample, given)
    return LabelScores(
        label_score=score,
        p_wrong=p_wrong,
        is_issue=p_wrong >= threshold,
        suggested=part.suggested,
        confidence=part.confidence,
        threshold=threshold,
        noise_rate=rate,
        noise_rate_range=spread.of_rate(rate, len(y)),
        by_class=spread.by_class(p_wrong, y),
        transition=transition,
        transition_range=spread.of_transition(transition, part.joint.sum(1)),
        sharpness=models[0].sharpness,
        reason=reason,
        detectors=part.detectors(y),
    )


def label_error_probability(
    p: Float[Tensor, "N C"], y: Int[Tensor, " N"], flip_concentration: float = FLIP_CONCENTRATION
) -> Float[Tensor, " N"]:
    """Return the `p_wrong` of `score_probabilities` for leave-one-out probabilities of a probe, without ranges.

    Args:
        p: Class probabilities.
        y: Given labels.
        flip_concentration: As in `score_probabilities`.
    """
    rows = subsample_rows(len(y), p.shape[1])
    model = fit_noise_model_family(p[rows], y[rows], "probe", flip_concentration, with_range=False)[0]
    part = _apply(p, y, model, None)
    return calibrate(part.label_score(model.is_concentrated), part.p_wrong, len(y))


@dataclass
class _Applied:
    """Noise model applied to all labels."""

    self_confidence: Float[Tensor, " N"]
    p_wrong: Float[Tensor, " N"]
    """Probability before calibration."""
    suggested: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    predicted: Int[Tensor, " N"]
    """Most probable class, whatever the given label."""
    joint: Float[Tensor, "C C"]
    """Expected counts, [true, given]."""
    mean_confidence: Float[Tensor, " C"]
    """Mean self-confidence of each class's given labels; 1 of a class without any."""

    def label_score(self, posterior_only: bool) -> Float[Tensor, " N"]:
        """Return the score: the posterior, or its geometric mean with the self-confidence.

        The self-confidence ranks noise without a pattern best, the posterior noise between few classes.
        """
        right = (1 - self.p_wrong).clamp(min=0)
        return right if posterior_only else (self.self_confidence.clamp(min=0) * right).sqrt()

    def detectors(self, y: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        """Return the scores of single detectors."""
        top = self.mean_confidence.max()
        # Each row of adjusted probabilities sums to 1 + shift.
        shift = float((top - self.mean_confidence).sum())
        confident = (self.self_confidence.double() - self.mean_confidence[y] + top) / (1 + shift)
        return {
            "self_confidence": self.self_confidence,
            "confident_learning": confident.float(),
            "gce_mixture": detectors.confidence_mixture_score(self.self_confidence, y, len(self.joint)),
        }


def _apply(p: Any, y: Tensor, model: NoiseModel, annotators: np.ndarray | None) -> _Applied:
    """Apply a noise model to all labels, block by block."""
    count, num_classes = p.shape
    block = max(256, BLOCK_CELLS // num_classes)
    starts = range(0, count, block)
    own, wrong, confidence = (torch.empty(count) for _ in range(3))
    suggested, predicted = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    joint, total = torch.zeros(num_classes, num_classes), torch.zeros(num_classes, dtype=torch.float64)
    voted = None
    if annotators is not None:
        blocks = [model.calibrate(to_float32(p[s : s + block]), y[s : s + block]).posterior for s in starts]
        voted = dawid_skene_posterior(torch.cat(blocks), torch.as_tensor(annotators))
    for start in starts:
        at = slice(start, min(start + block, count))
        part, given = to_float32(p[at]), y[at]
        posterior = model.calibrate(part, given).posterior if voted is None else voted[at]
        best = posterior.max(1)
        own[at] = part.gather(1, given[:, None])[:, 0]
        wrong[at] = (1 - posterior.gather(1, given[:, None])[:, 0]).clamp(0, 1)
        suggested[at], confidence[at], predicted[at] = best.indices, best.values, part.argmax(1)
        joint += torch.zeros(num_classes, num_classes).index_add_(0, given, posterior).T
        total.index_add_(0, given, own[at].double())
    size = torch.bincount(y, minlength=num_classes)
    mean_confidence = torch.where(size > 0, total / size.clamp(min=1), torch.ones_like(total))
    return _Applied(own, wrong, suggested, confidence, predicted, joint, mean_confidence)


def f_beta_threshold(p_wrong: Float[Tensor, " N"], beta: float = 1.0) -> float:
    """Return the probability from which on labels are listed as wrong, so that the expected F-beta is largest.

    With calibrated probabilities the best threshold is half the F1 that it reaches: low where wrong labels are hard to
    find.

    Args:
        p_wrong: Calibrated probabilities.
        beta: 1 weighs precision and recall alike, 2 recall more, 0.5 precision more.

    Source: Lipton, Elkan & Naryanaswamy, ECML 2014 (arXiv:1402.1892).
    """
    ranked = p_wrong.double().sort(descending=True).values
    hits = ranked.cumsum(0)
    listed = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    value = (1 + beta * beta) * hits / (beta * beta * ranked.sum() + listed).clamp(min=1e-12)
    return float(ranked[value.argmax()]) if float(ranked.sum()) > 0.5 else NO_THRESHOLD


def calibrate(
    score: Float[Tensor, " N"], p_wrong: Float[Tensor, " N"], num_fitted: int | None = None
) -> Float[Tensor, " N"]:
    """Return probabilities that fall as the score rises, with the same mean: isotonic regression on the score.

    Args:
        score: Scores, higher where labels are better.
        p_wrong: Probabilities that labels are wrong.
        num_fitted: Number of leading samples that the regression is fitted on; None takes all.
    """
    from sklearn.isotonic import IsotonicRegression

    regression = IsotonicRegression(increasing=False, y_min=0.0, y_max=1.0, out_of_bounds="clip")
    x = score.double().numpy()
    regression.fit(x[:num_fitted], p_wrong.double().numpy()[:num_fitted])
    return torch.from_numpy(regression.predict(x)).float()
