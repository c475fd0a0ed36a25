"""From features or probabilities and given labels to a verdict on every label: one pass over blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.functional.knn import NeighborGraph, Progress, build_neighbor_graph, neighbor_votes, outlier_scores
from cleantune.functional.standardize import to_float32
from cleantune.label_quality import scores
from cleantune.label_quality.loo_ridge import ClassSeparability, Ridge, Stack, class_separability, loo_ridge, stack
from cleantune.label_quality.noise_model import (
    NoiseModel,
    Source,
    calibrate,
    disagreement_fraction,
    f_beta_threshold,
    fit_noise_model_family,
    label_scores,
    subsample_rows,
)

BLOCK_CELLS = 2_000_000
"""Probabilities that are in memory at a time."""
NORMAL = 1.96
"""Standard errors of a 95 % interval."""
CHANCE = 0.1
"""Cohen's kappa of a model with the labels, below which its probabilities say nothing."""


@dataclass
class Verdict:
    """What is thought of N labels."""

    score: Float[Tensor, " N"]
    p_wrong: Float[Tensor, " N"]
    """Calibrated; falls as the score rises."""
    issue: Bool[Tensor, " N"]
    suggested: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    cut: float
    """The probability from which on a label is called wrong."""
    rate: float
    interval: tuple[float, float]
    by_class: Float[Tensor, "C 3"]
    """Noise rate of each given class, with its interval."""
    transition: Float[Tensor, "C C"]
    """P(given = column | true = row)."""
    transition_interval: Float[Tensor, "2 C C"]
    doubt: str
    """Why nothing can be told; empty where it can."""
    detectors: dict[str, Float[Tensor, " N"]] = field(default_factory=dict)
    graph: NeighborGraph | None = None
    outlier: Float[Tensor, " N"] | None = None
    ridge: Ridge | None = None
    stack: Stack | None = None
    class_separability: ClassSeparability | None = None
    sharpness: float = 0.0


def score_features(
    features: Any, y: Int[Tensor, " N"], classes: int, *, beta: float = 1.0, neighbors: int = 15,
    annotators: Int[np.ndarray, "A N"] | None = None, progress: Progress | None = None,
) -> Verdict:  # fmt: skip
    """The verdict from frozen features: a leave-one-out ridge probe and neighbors' votes, then the cut-off.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        classes: C.
        beta: As `score_probabilities`.
        neighbors: Of every sample.
        annotators: As `score_probabilities`.
        progress: Told how far the neighbors are.
    """
    ridge = loo_ridge(features, y, classes)
    graph = build_neighbor_graph(features, ridge.mean, neighbors, progress=progress)
    share = neighbor_votes(graph, y, classes)
    stacked = stack([ridge.loo, share], y)
    p = torch.softmax(stacked(ridge.loo, share), 1)
    apart = class_separability(features, y, classes, ridge.penalty)
    doubt = ""
    if apart.cannot_tell:
        doubt = (
            "two probes that share no sample differ from one another nearly as much as from the labels"
            f" (Cohen's kappa {apart.between:.2f} and {apart.with_labels:.2f}):"
            " these features do not separate the classes well enough to say which labels are wrong"
        )
    out = score_probabilities(p, y, "probe", beta=beta, annotators=annotators, doubt=doubt)
    out.detectors |= {
        "neighbor_agreement": scores.agreement_score(share, y),
        "distance_ratio": scores.distance_ratio_score(graph.index, graph.similarity, y),
    }
    out.graph, out.outlier, out.ridge, out.stack, out.class_separability = (
        graph,
        outlier_scores(graph),
        ridge,
        stacked,
        apart,
    )
    return out


def score_probabilities(
    p: Any, y: Int[Tensor, " N"], source: Source = "network", *, beta: float = 1.0,
    annotators: Int[np.ndarray, "A N"] | None = None, doubt: str = "",
) -> Verdict:  # fmt: skip
    """The verdict from class probabilities, none of which was learned from its own label.

    Args:
        p: [N, C], an array or memory-mapped; it is passed over in blocks.
        y: Given labels.
        source: Where the probabilities come from.
        beta: beta of the F-measure that the cut is best for: 1 balances precision and recall.
        annotators: Labels that others gave, -1 where they gave none.
        doubt: Why nothing can be told, where that is known.
    """
    count, classes = p.shape
    rows = subsample_rows(count, classes)
    some, given = to_float32(p[rows.numpy()]), y[rows]
    models = fit_noise_model_family(some, given, source)
    seen = _pass(p, y, models[0], annotators)
    score = label_scores(seen.own[:, None], torch.zeros_like(y), seen.wrong)
    if annotators is not None:
        score = 1 - seen.wrong
    p_wrong = calibrate(score, seen.wrong)
    cohen_kappa = _kappa(seen.guess, y, classes)
    if not doubt and cohen_kappa < CHANCE:
        doubt = f"the probabilities agree with the labels hardly more than by chance (Cohen's kappa {cohen_kappa:.2f})"
    cut = 1.0 + 1e-6 if doubt else f_beta_threshold(p_wrong, beta)
    rate = float(p_wrong.mean())
    spread = _Spread(models, some, given, classes)
    low, high = spread.around(rate, count)
    return Verdict(
        score,
        p_wrong,
        p_wrong >= cut,
        seen.suggested,
        seen.confidence,
        cut,
        rate,
        (low, high),
        spread.by_class(seen.wrong, y),
        _rows(seen.joint),
        spread.transition(_rows(seen.joint), seen.joint.sum(1)),
        doubt,
        {"self_confidence": seen.own, "confident_learning": seen.confident, "gce_mixture": seen.mixture},
        sharpness=models[0].sharpness,
    )


@dataclass
class _Seen:
    """What one pass over the probabilities leaves behind."""

    own: Tensor
    wrong: Tensor
    suggested: Tensor
    confidence: Tensor
    confident: Tensor
    mixture: Tensor
    guess: Tensor
    joint: Tensor
    """Expected counts, [true, given]."""


def _pass(p: Any, y: Tensor, model: NoiseModel, annotators: np.ndarray | None) -> _Seen:
    count, classes = p.shape
    block = max(256, BLOCK_CELLS // classes)
    starts = range(0, count, block)
    own, wrong, confidence, confident = (torch.empty(count) for _ in range(4))
    suggested, guess = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    joint = torch.zeros(classes, classes)
    total = torch.zeros(classes, dtype=torch.float64)
    experts = _experts(p, y, model, annotators, starts, block) if annotators is not None else None
    for start in starts:
        at = slice(start, min(start + block, count))
        part, mine = to_float32(p[at]), y[at]
        said = model.judge(part, mine)
        truth = said.truth if experts is None else experts[at]
        best = truth.max(1)
        own[at] = part.gather(1, mine[:, None])[:, 0]
        total.index_add_(0, mine, own[at].double())
        wrong[at] = (1 - truth.gather(1, mine[:, None])[:, 0]).clamp(0, 1)
        suggested[at], confidence[at], guess[at] = best.indices, best.values, part.argmax(1)
        joint += torch.zeros(classes, classes).index_add_(0, mine, truth).T
    size = torch.bincount(y, minlength=classes)
    threshold = torch.where(size > 0, total / size.clamp(min=1), torch.ones_like(total))
    shift = float((threshold.max() - threshold).sum())  # each row of adjusted probabilities sums to 1 + shift
    confident = ((own.double() - threshold[y] + threshold.max()) / (1 + shift)).float()
    mixture = scores.confidence_mixture_score(own, y, classes)
    return _Seen(own, wrong, suggested, confidence, confident, mixture, guess, joint)


def _experts(p: Any, y: Tensor, model: NoiseModel, votes_of: np.ndarray, starts: range, block: int) -> Tensor:
    from cleantune.label_quality.annotators import dawid_skene_posterior

    truth = torch.cat([model.judge(to_float32(p[s : s + block]), y[s : s + block]).truth for s in starts])
    return dawid_skene_posterior(truth, torch.as_tensor(votes_of))


def _kappa(guess: Tensor, y: Tensor, classes: int) -> float:
    from cleantune.label_quality.loo_ridge import cohen_kappa

    return cohen_kappa(guess, y, classes)


def _rows(joint: Tensor) -> Tensor:
    """A transition matrix from expected counts; a class that nothing belongs to keeps its labels."""
    size = joint.sum(1, keepdim=True)
    return torch.where(size > 0, joint / size.clamp(min=1e-12), torch.eye(len(joint)))


class _Spread:
    """How far the fitted noise models lie apart, on the samples that they were fitted on."""

    def __init__(self, models: list[NoiseModel], p: Tensor, y: Tensor, classes: int) -> None:
        self.y, self.classes = y, classes
        wrong, joints = [], []
        for model in models:
            said = model.judge(p, y)
            wrong.append(said.p_wrong)
            joints.append(torch.zeros(classes, classes).index_add_(0, y, said.truth).T)
        every = torch.stack(wrong)
        self.main, self.low, self.high = every[0], every.min(0).values, every.max(0).values
        self.joints = torch.stack(joints)

    def around(self, rate: float, count: int) -> tuple[float, float]:
        """Lowest and highest rate: every label at its lowest and highest probability, and the error of sampling."""
        low = max(rate + float((self.low - self.main).mean()), 0.0)
        high = min(rate + float((self.high - self.main).mean()), 1.0)
        error = [NORMAL * (r * (1 - r) / count) ** 0.5 for r in (low, high)]
        return max(low - error[0], 0.0), min(high + error[1], 1.0)

    def by_class(self, wrong: Tensor, y: Tensor) -> Tensor:
        """Rate, lowest and highest of each given class."""
        out = torch.zeros(self.classes, 3)
        for c in range(self.classes):
            mine, fitted = y == c, self.y == c
            size = int(mine.sum())
            if not size:
                continue
            rate = float(wrong[mine].mean())
            if not bool(fitted.any()):
                out[c] = torch.tensor([rate, 0.0, 1.0])
                continue
            gap = [float((side - self.main)[fitted].mean()) for side in (self.low, self.high)]
            low, high = max(rate + gap[0], 0.0), min(rate + gap[1], 1.0)
            error = [NORMAL * (max(r * (1 - r), 0.25 / size) / size) ** 0.5 for r in (low, high)]
            out[c] = torch.tensor([rate, max(low - error[0], 0.0), min(high + error[1], 1.0)])
        return out

    def transition(self, main: Tensor, size: Tensor) -> Tensor:
        """Lowest and highest of each pair of classes: [2, C, C]."""
        rows = torch.stack([_rows(joint) for joint in self.joints])
        low = (main + rows.min(0).values - rows[0]).clamp(0, 1)
        high = (main + rows.max(0).values - rows[0]).clamp(0, 1)
        error = [NORMAL * (side * (1 - side) / size.clamp(min=1)[:, None]).sqrt() for side in (low, high)]
        return torch.stack([(low - error[0]).clamp(min=0), (high + error[1]).clamp(max=1)])


__all__ = ["Verdict", "disagreement_fraction", "score_features", "score_probabilities"]
