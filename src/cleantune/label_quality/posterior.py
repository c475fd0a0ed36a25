"""How probably each label is wrong: what leave-one-out probes and a model of the noise think of it, in turn.

A first opinion comes from a ridge probe taught by all labels alike. Where wrong labels follow a pattern it has learned
much of that, so a second probe, to which each label counts as far as the first opinion trusts it, judges again.

What follows depends on how the noise looks to the first opinion. Where the wrong labels of a class name few others,
most flips between other classes that the model of the noise finds are the probe's own confusions, which likelihood
cannot tell from noise (it rises as the model explains them). Kept, they cast doubt on right labels: above all in a
class that lost samples and won none. So each class keeps its main targets alone, and three opinions follow one
another, of which the last counts. Elsewhere the more doubtful of two counts: the later one alone may believe that
nearly all labels are right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional.selection import balance_weights, within_class_quota
from cleantune.label_quality.loo_ridge import BLOCK, Ridge, Stack, loo_ridge, stack, weighted_loo_ridge
from cleantune.label_quality.noise_model import NoiseModel, fit_noise_model, subsample_rows

MAIN = 0.5
"""A main target of a class gets at least this many times the flips of the one that gets most."""
STRAY = 0.05
"""Share of a class's wrong labels that may name any other class all the same."""
OPINIONS = 3
"""Under noise with few targets; a fourth changes little."""


def p_wrong(
    features: Any, y: Int[Tensor, " N"], classes: int, even: float = 0.0, pattern: float = 1.0
) -> Float[Tensor, " N"]:
    """The probability that each label is wrong, as features tell it: leave-one-out ridge probes, then the noise model.

    Linear in N; memory is D^2 and N x C. An audit adds neighbors' votes, which rank noise without a pattern better
    and noise between few classes worse (dev/LOG.md has both).

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        classes: C.
        even: The power of 1 / class size that probabilities are multiplied by: 1 says that all classes are equally
            probable beforehand, and that a class is large because others' samples have its label; 0 that its size
            is right.
        pattern: The `flip_concentration` above which each class's wrong labels are held to name its main targets; 1: never.

    Source: ours; `cutoff` has the model.
    """
    ridge = loo_ridge(features, y, classes)
    opinion = NoisePosterior.of(ridge.loo, y, classes, even)
    if pattern >= 1 or flip_concentration(opinion.flips) <= pattern:
        first = opinion.p_wrong
        again = NoisePosterior.of(_taught(features, y, ridge, first, even), y, classes, even)
        return torch.maximum(first, again.p_wrong)
    wrong = opinion.focused().p_wrong
    for _ in range(OPINIONS - 1):
        wrong = NoisePosterior.of(_taught(features, y, ridge, wrong, even), y, classes, even).focused().p_wrong
    return wrong


def flip_concentration(flips: Float[Tensor, "C C"]) -> float:
    """How far the wrong labels of a class name one other: 0 where all others alike, 1 where always the same.

    It is the share that names the class which most of them name, beyond the 1 / (C - 1) of chance; 0 for two classes.

    Args:
        flips: How many labels of class j (column) are of class k (row); the diagonal is zero.
    """
    chance = 1 / max(len(flips) - 1, 1)
    total = float(flips.sum())
    if chance == 1 or total <= 0:
        return 0.0
    return (float(flips.max(1).values.sum()) / total - chance) / (1 - chance)


def main_targets(flips: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """Which class a wrong label names (column), by true class (row), where each class has its main targets alone.

    Targets with less than MAIN of the most flips of their row are held to be confusions of the probe; STRAY of a row
    is spread over all other classes, so that no label is impossible. The diagonal is zero.

    Args:
        flips: How many labels of class j are of class k; the diagonal is zero.

    Source: ours, in the place of a prior under which few flips are probable: likelihood would keep confusions.
    """
    classes = len(flips)
    others = 1 - torch.eye(classes)
    main = torch.where(flips >= MAIN * flips.max(1, keepdim=True).values, flips, torch.zeros(())) * others
    main = (main + 1e-9 * others) / (main + 1e-9 * others).sum(1, keepdim=True)
    return (1 - STRAY) * main + STRAY * others / max(classes - 1, 1)


@dataclass(frozen=True)
class NoisePosterior:
    """What a model of the noise makes of leave-one-out scores."""

    loo: Float[Tensor, "N C"]
    y: Int[Tensor, " N"]
    stacked: Stack
    prior: Float[Tensor, " C"]
    """Subtracted from the logits."""
    rows: Int[Tensor, " M"]
    """Samples that the model was fitted on."""
    model: NoiseModel

    @classmethod
    def of(cls, loo: Float[Tensor, "N C"], y: Int[Tensor, " N"], classes: int, even: float) -> NoisePosterior:
        """Of these scores.

        Args:
            loo: Scores.
            y: Given labels.
            classes: C.
            even: The power of 1 / class size in the prior.
        """
        stacked = stack([loo], y)
        prior = even * torch.bincount(y, minlength=classes).clamp(min=1).log()
        rows = subsample_rows(len(y), classes)
        return cls(loo, y, stacked, prior, rows, fit_noise_model((stacked(loo[rows]) - prior).softmax(1), y[rows]))

    @property
    def p_wrong(self) -> Float[Tensor, " N"]:
        """The probability that each label is wrong."""
        parts = zip(torch.split(self.loo, BLOCK), torch.split(self.y, BLOCK), strict=True)
        return torch.cat([self.model.judge(self._probabilities(part), mine).p_wrong for part, mine in parts])

    @cached_property
    def flips(self) -> Float[Tensor, "C C"]:
        """How many of the labels of class j (column) that the model was fitted on it holds to be of class k (row)."""
        return self.model.flips(self._probabilities(self.loo[self.rows]), self.y[self.rows])

    def focused(self) -> NoisePosterior:
        """The same, but for classes whose wrong labels name their main targets."""
        return replace(self, model=replace(self.model, others=main_targets(self.flips)))

    def _probabilities(self, loo: Tensor) -> Tensor:
        return (self.stacked(loo) - self.prior).softmax(1)


def _taught(features: Any, y: Tensor, ridge: Ridge, wrong: Tensor, even: float) -> Tensor:
    """Leave-one-out scores of a probe to which labels count as far as they are trusted."""
    classes = len(ridge.bias)
    trust = (1 - wrong) * within_class_quota(wrong, y, classes, even)
    return weighted_loo_ridge(features, y, ridge, balance_weights(trust, y, classes, even))
