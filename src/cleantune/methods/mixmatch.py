"""What DivideMix and UNICON share: targets, MixUp and the loss of a step; pure but for the luck of the run's generator.

Sources: MixMatch (arXiv:1905.02249) as DivideMix changes it (arXiv:2002.07394, section 3.3); spec 4.4, step 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cleantune.functional import losses
from cleantune.methods.protocol import Batch, Inputs, Output

Network = Callable[..., Output]


class MixUp(NamedTuple):
    """What is drawn for one MixUp."""

    share: float
    """lam, 0.5..1: how much of itself a row keeps."""
    partner: Int[Tensor, " M"]
    """The row that each is mixed with."""


class SoftTargets(NamedTuple):
    """Soft targets of a step; no gradient flows into them."""

    labeled: Float[Tensor, "B C"]
    unlabeled: Float[Tensor, "U C"] | None


def sample_mixup(rows: int, alpha: float, rng: torch.Generator) -> MixUp:
    """lam = max(lam, 1 - lam) of Beta(alpha, alpha), and a permutation of the rows."""
    seed = int(torch.randint(2**62, (), generator=rng))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return MixUp(max(share, 1 - share), torch.randperm(rows, generator=rng))


def probabilities(net: Network, views: Sequence[Inputs]) -> Float[Tensor, "B C"]:
    """Mean probabilities over views."""
    return torch.stack([functional.softmax(net(x).logits.float(), dim=1) for x in views]).mean(0)


def targets(net: Network, peer: Network, batch: Batch, temperature: float) -> SoftTargets:
    """Co-refinement of the labeled samples by the net, co-guessing of the rest by both nets, on the two weak views."""
    with torch.no_grad():
        p = probabilities(net, batch.views[:2])
        one_hot = functional.one_hot(batch.y, p.shape[1]).to(p)
        weight = batch.weight[:, None]
        labeled = losses.sharpen(weight * one_hot + (1 - weight) * p, temperature)
        if batch.unlabeled is None:
            return SoftTargets(labeled, None)
        guess = (probabilities(net, batch.unlabeled.views[:2]) + probabilities(peer, batch.unlabeled.views[:2])) / 2
        return SoftTargets(labeled, losses.sharpen(guess, temperature))


def mixed(net: Network, views: Sequence[Inputs], luck: MixUp) -> Float[Tensor, "M C"]:
    """Scores of the mixed rows of all views.

    Tokens cannot be mixed: for texts the scores are, which under a linear head is the same as mixing features.
    """
    if isinstance(views[0], Tensor):
        x = torch.cat(cast(list[Tensor], list(views)))
        return net(luck.share * x + (1 - luck.share) * x[luck.partner]).logits
    logits = torch.cat([net(x).logits for x in views])
    return luck.share * logits + (1 - luck.share) * logits[luck.partner]


def semi_loss(
    net: Network,
    batch: Batch,
    target: SoftTargets,
    views: slice,
    unlabeled_weight: float,
    draw_for: Callable[[int], MixUp],
    *,
    web: bool = False,
) -> Float[Tensor, ""]:
    """Lx + lambda_u Lu + penalty of one step on mixed samples.

    Args:
        net: That learns.
        batch: Labeled samples and the rest beside them.
        target: Of both, one row a sample; views share it.
        views: Which two views are mixed.
        rest_weight: lambda_u at this step.
        draw_for: The luck for so many rows.
        web: Only the labeled rows are mixed and learned from, as the public code does on web data.

    Source: DivideMix (arXiv:2002.07394), equations 8 to 13; spec 4.4, step 3.
    """
    xs, goal = list(batch.views[views]), torch.cat([target.labeled] * 2)
    labeled = len(goal)
    if batch.unlabeled is not None and target.unlabeled is not None and not web:
        xs += batch.unlabeled.views[views]
        goal = torch.cat([goal, target.unlabeled, target.unlabeled])
    luck = draw_for(len(goal))
    logits = mixed(net, xs, luck)
    goal = luck.share * goal + (1 - luck.share) * goal[luck.partner]
    loss = losses.soft_cross_entropy(logits[:labeled], goal[:labeled]).mean() + losses.uniform_penalty(logits)
    if len(goal) > labeled:
        loss = loss + unlabeled_weight * losses.squared_error(logits[labeled:], goal[labeled:]).mean()
    return loss


def linear_rampup(full: float, progress: float, warm_up: int, epochs: int, ramp: float) -> float:
    """A weight that rises from 0 after the warm-up to its full value, over a share of the epochs that are left.

    Args:
        full: The value at the end.
        progress: Epoch with its fraction.
        warm_up: Epochs before it begins.
        epochs: Of the phase.
        ramp: Share of the epochs after the warm-up; 0: at once.

    Source: DivideMix's code ramps over 16 epochs of 300; the share suits short runs (spec 4.4).
    """
    length = ramp * (epochs - warm_up)
    return full * min(max((progress - warm_up) / length, 0.0), 1.0) if length > 0 else full


def unlabeled_mask(keep: Tensor) -> Tensor | None:
    """The samples that are not kept, or None where there are fewer than two: then a step is supervised alone."""
    unlabeled = ~keep
    return unlabeled if int(unlabeled.sum()) >= 2 else None
