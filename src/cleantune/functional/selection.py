"""Selection rules as pure functions: masks of trusted labels, and the balance of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.errors import UserError, did_you_mean

MIN_PER_CLASS = 5
"""Number of samples to which `rescue_small_classes` fills up a class."""

MAX_CLASS_WEIGHT = 10.0
"""Upper bound of the factor by which `balance_weights` raises the weight of a small class."""


def rescue_small_classes(
    mask: Bool[Tensor, " N"],
    losses: Float[Tensor, " N"],
    y: Int[Tensor, " N"],
    classes: int,
    smallest: int = MIN_PER_CLASS,
) -> Bool[Tensor, " N"]:
    """Fill up a selection so that every class keeps at least min(smallest, its size) samples.

    The samples with the lowest losses of a class are added; no sample is removed. TURN (arXiv:2310.17668) does not say
    what happens to a class that keeps nothing.

    Args:
        mask: Selection.
        losses: Loss of each sample.
        y: Given labels.
        classes: Number of classes C.
        smallest: Number of samples of a filled class.
    """
    size = torch.bincount(y, minlength=classes)
    kept = torch.bincount(y[mask], minlength=classes)
    wanted = torch.minimum(size, torch.full_like(size, smallest))
    too_small = kept < wanted
    if not too_small.any():
        return mask
    mask = mask.clone()
    for c in too_small.nonzero().flatten().tolist():
        members = (y == c).nonzero().flatten()
        spare = members[~mask[members]]
        order = torch.argsort(losses[spare].nan_to_num(nan=torch.inf, posinf=torch.inf), stable=True)
        mask[spare[order[: int(wanted[c] - kept[c])]]] = True
    return mask


def keep_at_least(mask: Bool[Tensor, " N"], score: Float[Tensor, " N"], count: int) -> Bool[Tensor, " N"]:
    """Add the samples with the highest scores to a selection of fewer than `count` samples.

    Args:
        mask: Selection.
        score: Score of each sample.
        count: Minimum number of samples, at most N.
    """
    count = min(count, len(mask))
    if int(mask.sum()) >= count:
        return mask
    out = mask.clone()
    out[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return out


def lowest_per_class(
    value: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, fraction: float
) -> Bool[Tensor, " N"]:
    """Select the int(fraction N / C) samples with the lowest values of every given class.

    A smaller class gives all its samples; every observed class gives at least one.

    Args:
        value: Value of each sample.
        y: Given labels.
        classes: Number of classes C.
        fraction: Fraction of all samples to select.

    Source: UNICON (arXiv:2203.14542), section 3.2, uniform selection. Differs: the official code fills up a small class
    with copies of sample 0, and keeps nothing if the number rounds to 0.
    """
    return _rank_in_class(value, y, classes) < max(1, int(fraction * len(y) / classes))


def _rank_in_class(value: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int) -> Int[Tensor, " N"]:
    """Rank each sample within its class by ascending value, ties by row."""
    size = torch.bincount(y, minlength=classes)
    order = torch.argsort(value, stable=True)
    order = order[torch.argsort(y[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(y)) - (torch.cumsum(size, 0) - size)[y[order]]
    return rank


def balance_weights(
    weight: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, class_balance: float
) -> Float[Tensor, " N"]:
    """Multiply weights by (mean class weight / weight of the class)^class_balance, at most `MAX_CLASS_WEIGHT`.

    The total is kept. With a class balance of 1 all classes get the same sum of weights, with 0 nothing changes. TURN
    (arXiv:2310.17668) drops samples instead, down to the size of the smallest class.

    Args:
        weight: Weight of each sample.
        y: Given labels.
        classes: Number of classes C.
        class_balance: Exponent, 0..1.
    """
    if class_balance == 0:
        return weight
    by_class = torch.zeros(classes, dtype=weight.dtype).index_add_(0, y, weight)
    present = by_class > 0
    factor = (by_class[present].mean() / by_class.clamp(min=1e-9)).pow(class_balance).clamp(max=MAX_CLASS_WEIGHT)
    out = weight * factor[y]
    return out * (weight.sum() / out.sum().clamp(min=1e-9))


def within_class_quota(
    p_wrong: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, class_balance: float
) -> Bool[Tensor, " N"]:
    """Select the least suspicious samples of each class up to the quota of the class.

    The number of right labels of a class is at most its true size, which is supposed to be proportional to
    n_c^(1 - class_balance) for n_c given labels: all classes are equally large with a class balance of 1; with 0 the
    quotas are the given sizes, and every sample is within.

    Args:
        p_wrong: Probability of a label error of each sample.
        y: Given labels.
        classes: Number of classes C.
        class_balance: Exponent, 0..1.
    """
    size = torch.bincount(y, minlength=classes)
    share = torch.where(size > 0, size.clamp(min=1).double().pow(1 - class_balance), torch.zeros(()))
    quota = (len(y) * share / share.sum()).ceil().long()
    return _rank_in_class(p_wrong, y, classes) < quota[y]


@dataclass(frozen=True)
class Strict:
    """Balance of the paper: every class gives as many samples as the smallest."""

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """Return the smallest count."""
        return int(kept.min())

    def __str__(self) -> str:
        return "strict"


@dataclass(frozen=True)
class Quantile:
    """Balance by a quantile of the class sizes, so that one small class does not limit all others."""

    rho: float = 0.10

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """Return the `rho` quantile of the counts, rounded down, at least the smallest count."""
        return max(int(torch.quantile(kept.double(), self.rho)), int(kept.min()))

    def __str__(self) -> str:
        return f"quantile:{self.rho:g}"


@dataclass(frozen=True)
class Floor:
    """Balance of the paper with at least `k` samples per class; smaller classes give all they have."""

    k: int = 16

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """Return the smallest count, at least k."""
        return max(int(kept.min()), self.k)

    def __str__(self) -> str:
        return f"floor:{self.k}"


@dataclass(frozen=True)
class All:
    """No balance: every selected sample is kept."""

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """Return the largest count."""
        return int(kept.max())

    def __str__(self) -> str:
        return "all"


Balance = Strict | Quantile | Floor | All
"""Rule of class balance; `cap` gives the maximum number of samples per class."""


def balance_classes(
    mask: Bool[Tensor, " N"], y: Int[Tensor, " N"], classes: int, balance: Balance, rng: torch.Generator
) -> Bool[Tensor, " N"]:
    """Drop random samples of a selection so that no class exceeds the cap of a balance rule.

    Args:
        mask: Selection.
        y: Given labels.
        classes: Number of classes C.
        balance: Rule that gives the cap; classes without a sample are ignored.
        rng: Random generator, used in every call, so that every epoch draws again.

    Source: TURN (arXiv:2310.17668), section 3, N = min_c |D_c|; the other rules are ours.
    """
    kept = torch.bincount(y[mask], minlength=classes)
    is_observed = torch.bincount(y, minlength=classes) > 0
    cap = balance.cap(kept[is_observed])
    priority = torch.rand(len(y), generator=rng, dtype=torch.float64)
    chosen = mask.nonzero().flatten()
    out = torch.zeros_like(mask)
    out[chosen] = _rank_in_class(priority[chosen], y[chosen], classes) < cap
    return out


def parse_balance(text: str) -> Balance:
    """Parse a balance rule: `strict`, `quantile:0.10`, `floor:16` or `all`.

    Raises:
        UserError: The rule is unknown or its number is not valid.
    """
    name, _, number = text.partition(":")
    try:
        rules: dict[str, Balance] = {
            "strict": Strict(),
            "all": All(),
            "quantile": Quantile(float(number or 0.10) if name == "quantile" else 0.10),
            "floor": Floor(int(number or 16) if name == "floor" else 16),
        }
    except ValueError:
        raise UserError(f'balance "{text}": "{number}" is not a number; write {name}:0.10 or {name}:16') from None
    if name not in rules:
        raise UserError(f'unknown balance "{name}"{did_you_mean(name, rules)}')
    rule = rules[name]
    if isinstance(rule, Quantile) and not 0 <= rule.rho <= 1:
        raise UserError(f'balance "{text}": the quantile lies outside 0..1')
    if isinstance(rule, Floor) and rule.k < 1:
        raise UserError(f'balance "{text}": the floor must be at least 1')
    return rule
