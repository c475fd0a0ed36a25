"""Selection rules as pure functions: whose label is trusted, and how the classes are evened out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cleantune.errors import UserError, did_you_mean

MIN_PER_CLASS = 5
"""A class that keeps fewer samples than this is filled up to it with its lowest losses (spec 1.6, rule 4)."""

MAX_CLASS_WEIGHT = 10.0
"""A sample of a small class counts at the most this many times what one of a mean class does."""


def rescue_small_classes(
    keep: Bool[Tensor, " N"],
    losses: Float[Tensor, " N"],
    y: Int[Tensor, " N"],
    classes: int,
    smallest: int = MIN_PER_CLASS,
) -> Bool[Tensor, " N"]:
    """The selection with poor classes filled up: no observed class is left with fewer than min(smallest, its size).

    The samples of the lowest loss are taken; what was kept stays kept.

    Source: spec 1.6, rule 4. The paper does not say what happens to a class that keeps nothing.
    """
    size = torch.bincount(y, minlength=classes)
    kept = torch.bincount(y[keep], minlength=classes)
    wanted = torch.minimum(size, torch.full_like(size, smallest))
    poor = kept < wanted
    if not poor.any():
        return keep
    keep = keep.clone()
    for c in poor.nonzero().flatten().tolist():
        members = (y == c).nonzero().flatten()
        spare = members[~keep[members]]
        order = torch.argsort(losses[spare].nan_to_num(nan=torch.inf, posinf=torch.inf), stable=True)
        keep[spare[order[: int(wanted[c] - kept[c])]]] = True
    return keep


def keep_at_least(keep: Bool[Tensor, " N"], score: Float[Tensor, " N"], least: int) -> Bool[Tensor, " N"]:
    """The selection, or the samples of the highest scores where it has fewer than `least` (or than there are).

    Source: spec 7, "X or U empty".
    """
    least = min(least, len(keep))
    if int(keep.sum()) >= least:
        return keep
    out = keep.clone()
    out[torch.argsort(score, descending=True, stable=True)[:least]] = True
    return out


def lowest_per_class(
    value: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, share: float
) -> Bool[Tensor, " N"]:
    """Equally many of every given class, those of the smallest values: int(share N / C) of each.

    A class with fewer samples gives all that it has; every observed class gives one at the least.

    Source: UNICON (arXiv:2203.14542), section 3.2, uniform selection. Differs: the public code fills up a small class
    with copies of sample 0, and keeps nothing where the number rounds to 0.
    """
    return _rank_in_class(value, y, classes) < max(1, int(share * len(y) / classes))


def _rank_in_class(value: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int) -> Int[Tensor, " N"]:
    """How many samples of its class have a smaller value, or the same and an earlier row."""
    size = torch.bincount(y, minlength=classes)
    order = torch.argsort(value, stable=True)
    order = order[torch.argsort(y[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(y)) - (torch.cumsum(size, 0) - size)[y[order]]
    return rank


def balance_weights(
    trust: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, class_balance: float
) -> Float[Tensor, " N"]:
    """Weights that make classes count alike: the trust times (mean / the class's trust)^even, LIFTED at the most.

    They keep the sum of the trust where no class meets the limit. With even 1 every class weighs the same, with 0 as
    much as it is trusted.

    Source: ours, in the place of the paper's N = min_c |D_c|, which evens out by leaving out.
    """
    if class_balance == 0:
        return trust
    mass = torch.zeros(classes, dtype=trust.dtype).index_add_(0, y, trust)
    there = mass > 0
    factor = (mass[there].mean() / mass.clamp(min=1e-9)).pow(class_balance).clamp(max=MAX_CLASS_WEIGHT)
    out = trust * factor[y]
    return out * (trust.sum() / out.sum().clamp(min=1e-9))


def within_class_quota(
    wrong: Float[Tensor, " N"], y: Int[Tensor, " N"], classes: int, class_balance: float
) -> Bool[Tensor, " N"]:
    """Whether a label is among the least suspicious of its class that the class has room for.

    Class c can have no more right labels than it has samples, and these are N n_c^(1 - even) / sum of that: with even 1
    all classes are equally large, with 0 as large as their labels say, and then all have room.

    Source: ours; UNICON (arXiv:2203.14542) gives each class equal room as well.
    """
    size = torch.bincount(y, minlength=classes)
    there = size > 0
    share = torch.where(there, size.clamp(min=1).double().pow(1 - class_balance), torch.zeros(()))
    room = (len(y) * share / share.sum()).ceil().long()
    return _rank_in_class(wrong, y, classes) < room[y]


@dataclass(frozen=True)
class Strict:
    """The paper's rule: every class gives as many samples as the poorest."""

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """The smallest count."""
        return int(kept.min())

    def __str__(self) -> str:
        return "strict"


@dataclass(frozen=True)
class Quantile:
    """A class gives at most the `rho` quantile of the counts, so that one poor class does not throttle all others."""

    rho: float = 0.10

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """The quantile of the counts, rounded down, at least the smallest count."""
        return max(int(torch.quantile(kept.double(), self.rho)), int(kept.min()))

    def __str__(self) -> str:
        return f"quantile:{self.rho:g}"


@dataclass(frozen=True)
class Floor:
    """The paper's rule with a floor: at least `k` a class, poorer classes give all they have."""

    k: int = 16

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """The smallest count, at least k."""
        return max(int(kept.min()), self.k)

    def __str__(self) -> str:
        return f"floor:{self.k}"


@dataclass(frozen=True)
class All:
    """Every selected sample."""

    def cap(self, kept: Int[Tensor, " C"]) -> int:
        """The largest count: nothing is thinned out."""
        return int(kept.max())

    def __str__(self) -> str:
        return "all"


Balance = Strict | Quantile | Floor | All
"""How classes are evened out after the cut: `cap` is the number of samples above which a class is thinned out."""


def balance_classes(
    keep: Bool[Tensor, " N"], y: Int[Tensor, " N"], classes: int, balance: Balance, rng: torch.Generator
) -> Bool[Tensor, " N"]:
    """The kept samples thinned out so that no class exceeds the cap; who stays is drawn without replacement.

    Args:
        keep: The cut.
        y: Given labels.
        classes: Number of classes.
        balance: The rule that gives the cap. Classes without a sample are left out of it.
        rng: Drawn from on every call, so every epoch draws anew.

    Source: arXiv:2310.17668, section 3, N = min_c |D_c|; the other rules: spec 1.6.
    """
    kept = torch.bincount(y[keep], minlength=classes)
    observed = torch.bincount(y, minlength=classes) > 0
    cap = balance.cap(kept[observed])
    luck = torch.rand(len(y), generator=rng, dtype=torch.float64)
    chosen = keep.nonzero().flatten()
    out = torch.zeros_like(keep)
    out[chosen] = _rank_in_class(luck[chosen], y[chosen], classes) < cap
    return out


def parse_balance(text: str) -> Balance:
    """The balance rule from its spelling: `strict`, `quantile:0.10`, `floor:16` or `all`.

    Raises:
        UserError: The rule is unknown or its number is not one.
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
