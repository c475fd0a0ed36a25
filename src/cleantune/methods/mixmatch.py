"""Targets, MixUp and the loss of a step that DivideMix and UNICON share; random numbers come from the run's generator.

Sources: MixMatch (arXiv:1905.02249) as DivideMix changes it (arXiv:2002.07394, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.functional import losses
from cleantune.methods.protocol import Batch, Inputs, Output

Network = Callable[..., Output]


class MixUp(NamedTuple):
    """Random numbers of one MixUp."""

    lam: float
    """Weight of a row itself, 0.5..1."""
    permutation: Int[Tensor, " M"]
    """Row that each row is mixed with."""


class SoftTargets(NamedTuple):
    """Soft targets of a step, without gradient."""

    labeled: Float[Tensor, "B C"]
    unlabeled: Float[Tensor, "U C"] | None


def sample_mixup(rows: int, alpha: float, rng: torch.Generator) -> MixUp:
    """Draw lam = max(lam', 1 - lam') with lam' from Beta(alpha, alpha), and a permutation of the rows."""
    seed = int(torch.randint(2**62, (), generator=rng))
    lam = float(np.random.default_rng(seed).beta(alpha, alpha))
    return MixUp(max(lam, 1 - lam), torch.randperm(rows, generator=rng))


def mean_probabilities(net: Network, views: Sequence[Inputs]) -> Float[Tensor, "B C"]:
    """Return the probabilities of a network, averaged over views."""
    return torch.stack([functional.softmax(net(x).logits.float(), dim=1) for x in views]).mean(0)


def soft_targets(net: Network, peer: Network, batch: Batch, temperature: float) -> SoftTargets:
    """Return refined labels of the labeled samples and guessed labels of the others.

    Labels are refined by the network itself (co-refinement) and guessed by both networks (co-guessing), from the two
    weak views.

    Args:
        net: Network that learns.
        peer: Other network.
        batch: Labeled samples, their weights, and unlabeled samples.
        temperature: Temperature T of the sharpening.
    """
    with torch.no_grad():
        p = mean_probabilities(net, batch.views[:2])
        one_hot = functional.one_hot(batch.y, p.shape[1]).to(p)
        weight = batch.weight[:, None]
        labeled = losses.sharpen(weight * one_hot + (1 - weight) * p, temperature)
        if batch.unlabeled is None:
            return SoftTargets(labeled, None)
        views = batch.unlabeled.views[:2]
        guess = (mean_probabilities(net, views) + mean_probabilities(peer, views)) / 2
        return SoftTargets(labeled, losses.sharpen(guess, temperature))


def mixup_logits(net: Network, views: Sequence[Inputs], mixup: MixUp) -> Float[Tensor, "M C"]:
    """Return the logits of the mixed rows of all views.

    Tokens cannot be mixed: for texts the logits are, which is the same as mixing features under a linear head.
    """
    if isinstance(views[0], Tensor):
        x = torch.cat(cast(list[Tensor], list(views)))
        return net(mixup.lam * x + (1 - mixup.lam) * x[mixup.permutation]).logits
    logits = torch.cat([net(x).logits for x in views])
    return mixup.lam * logits + (1 - mixup.lam) * logits[mixup.permutation]


def semi_supervised_loss(
    net: Network,
    batch: Batch,
    targets: SoftTargets,
    views: slice,
    unlabeled_weight: float,
    draw_mixup: Callable[[int], MixUp],
) -> Float[Tensor, ""]:
    """Return Lx + lambda_u Lu + penalty of one step on mixed samples.

    Args:
        net: Network that learns.
        batch: Labeled and unlabeled samples.
        targets: Their targets, one row per sample, shared by its views.
        views: Two views that are mixed.
        unlabeled_weight: lambda_u at this step.
        draw_mixup: Function from a number of rows to a MixUp.

    Source: DivideMix (arXiv:2002.07394), equations 8 to 13.
    """
    inputs, target = list(batch.views[views]), torch.cat([targets.labeled] * 2)
    labeled = len(target)
    if batch.unlabeled is not None and targets.unlabeled is not None:
        inputs += batch.unlabeled.views[views]
        target = torch.cat([target, targets.unlabeled, targets.unlabeled])
    mixup = draw_mixup(len(target))
    logits = mixup_logits(net, inputs, mixup)
    target = mixup.lam * target + (1 - mixup.lam) * target[mixup.permutation]
    loss = losses.soft_cross_entropy(logits[:labeled], target[:labeled]).mean() + losses.uniform_penalty(logits)
    if len(target) > labeled:
        loss = loss + unlabeled_weight * losses.squared_error(logits[labeled:], target[labeled:]).mean()
    return loss


def linear_rampup(maximum: float, progress: float, warm_up: int, epochs: int, ramp: float) -> float:
    """Return a weight that rises linearly from 0 after the warm-up to its maximum.

    Args:
        maximum: Final value.
        progress: Epoch with its finished fraction.
        warm_up: Epochs before the rise.
        epochs: Epochs of the phase.
        ramp: Length of the rise as a fraction of the epochs after the warm-up; 0 for none.

    Source: the official code of DivideMix ramps over 16 epochs of 300; a fraction suits short runs.
    """
    length = ramp * (epochs - warm_up)
    return maximum * min(max((progress - warm_up) / length, 0.0), 1.0) if length > 0 else maximum


def unlabeled_mask(mask: Bool[Tensor, " N"]) -> Bool[Tensor, " N"] | None:
    """Return the samples outside a selection, or None if there are fewer than two, which makes steps supervised."""
    unlabeled = ~mask
    return unlabeled if int(unlabeled.sum()) >= 2 else None
