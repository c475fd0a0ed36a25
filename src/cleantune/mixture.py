"""Two-component Gaussian mixtures of losses, one per class, all classes fitted by one vectorised EM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Normalise = Literal["none", "class", "global"]

LOG_2_PI = 1.8378770664093453
TINY_RANGE = 1e-12


@dataclass(frozen=True)
class ClassMixtures:
    """The fitted mixtures; component 0 is the one with the smaller mean ("low"), component 1 the other.

    A class without a mixture (`fitted` is False) is judged by `cut`: labels with a loss up to it are trusted.
    """

    mean: Float[Tensor, "C 2"]
    variance: Float[Tensor, "C 2"]
    weight: Float[Tensor, "C 2"]
    fitted: Tensor
    """[C] bool: the class was large and varied enough for two components."""
    cut: Float[Tensor, " C"]
    size: Int[Tensor, " C"]
    offset: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]
    """The fit saw (loss - offset) / scale."""
    replaced: int
    """Non-finite losses, which were given the largest finite loss of their class."""

    def posterior(
        self, losses: Float[Tensor, " N"], y: Int[Tensor, " N"], *, monotone: bool = True
    ) -> Float[Tensor, " N"]:
        """Probability of each loss to come from the low component of its class: `p_clean`.

        Args:
            losses: In the units of the fit, nats.
            y: Given labels.
            monotone: With unequal variances the broad component wins on both far sides, so that a very high loss
                could be called clean. True sets 0 at and above the high mean and at least 0.999 at and below the
                low mean (spec 1.5).

        Source: arXiv:2310.17668, section 3 (the posterior, not the density: spec 1.10, ambiguity 2).
        """
        x = (losses.double() - self.offset[y]) / self.scale[y]
        log_joint = _log_joint(x, self.mean[y], self.variance[y], self.weight[y])
        p = torch.softmax(log_joint, dim=1)[:, 0]
        if monotone:
            p = torch.where(x >= self.mean[y, 1], torch.zeros_like(p), p)
            p = torch.where(x <= self.mean[y, 0], p.clamp(min=0.999), p)
        by_cut = (losses.double() <= self.cut[y]).double()
        p = torch.where(self.fitted[y], p, by_cut)
        return torch.where(torch.isfinite(losses), p, torch.zeros_like(p)).float()


def class_mixtures(
    losses: Float[Tensor, " N"],
    y: Int[Tensor, " N"],
    classes: int,
    *,
    normalise: Normalise = "none",
    max_iter: int = 10,
    tol: float = 1e-2,
    reg_covar: float = 5e-4,
    smallest: int = 10,
) -> ClassMixtures:
    """Fit a two-component mixture to the losses of each class, all classes at once.

    Every iteration is one pass of sums by class over the N losses: O(N) whatever the number of classes. It starts
    from the exact two-means split of each class (in one dimension a sort finds it), where scikit-learn starts from
    a random k-means; stopping rule, regulariser and update are those of scikit-learn's GaussianMixture.

    Args:
        losses: Cross-entropy of each sample, nats.
        y: Given labels.
        classes: Number of classes C.
        normalise: `none` fits the losses as they are, `class` and `global` scale them to 0..1 first (spec 1.5).
        max_iter: EM iterations at the most.
        tol: A class is done when its mean log-likelihood changes by less.
        reg_covar: Added to the variances.
        smallest: A class with fewer samples is not fitted: its lower half is trusted, at least one (spec 1.6).
            Neither is a class whose losses are all equal: it is trusted whole.

    Raises:
        ValueError: No loss is finite.

    Source: arXiv:2310.17668, section 3; settings from the spec, 1.4.
    """
    x, replaced = _finite(losses.double(), y, classes)
    size = torch.bincount(y, minlength=classes)
    order = _sorted_by_class(x, y)
    low, high = _extremes(x[order], size)
    offset, scale = _units(low, high, normalise)
    spread = (high - low) / scale
    fitted = (size >= max(smallest, 2)) & (spread > TINY_RANGE)
    half = (torch.cumsum(size, 0) - size + (size - 1).clamp(min=0) // 2).clamp(max=len(x) - 1)
    cut = torch.where(spread > TINY_RANGE, x[order][half], high)
    scaled = (x - offset[y]) / scale[y]
    mean, variance, weight = _two_means(scaled[order], y[order], size, reg_covar)
    mean, variance, weight = _expectation_maximisation(
        scaled, y, size, (mean, variance, weight), fitted, max_iter, tol, reg_covar
    )
    swap = (mean[:, 0] > mean[:, 1])[:, None]
    mean, variance, weight = (torch.where(swap, a.flip(1), a) for a in (mean, variance, weight))
    return ClassMixtures(mean, variance, weight, fitted, cut, size, offset, scale, replaced)


def _finite(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, int]:
    """The losses with each non-finite one replaced by the largest finite one of its class (else of all)."""
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count == 0:
        return x, 0
    if count == len(x):
        raise ValueError("no loss is finite")
    top = torch.full((classes,), -torch.inf, dtype=x.dtype)
    top.scatter_reduce_(0, y[~bad], x[~bad], "amax")
    top = torch.where(torch.isfinite(top), top, x[~bad].max())
    return torch.where(bad, top[y], x), count


def _sorted_by_class(x: Tensor, y: Tensor) -> Tensor:
    """The order by class and, within a class, by loss: two stable sorts."""
    by_loss = torch.argsort(x, stable=True)
    return by_loss[torch.argsort(y[by_loss], stable=True)]


def _extremes(ordered: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest loss of each class; 0 and 0 of an empty one."""
    end = torch.cumsum(size, 0)
    empty = size == 0
    low = ordered[(end - size).clamp(max=len(ordered) - 1)]
    high = ordered[(end - 1).clamp(min=0)]
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _units(low: Tensor, high: Tensor, normalise: Normalise) -> tuple[Tensor, Tensor]:
    """Offset and scale of each class; a range that is almost nothing is not scaled."""
    if normalise == "none":
        return torch.zeros_like(low), torch.ones_like(low)
    if normalise == "global":
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    span = high - low
    return low.clone(), torch.where(span > TINY_RANGE, span, torch.ones_like(span))


def _two_means(ordered: Tensor, y: Tensor, size: Tensor, reg_covar: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best split of each class into two runs of its sorted losses, as means, variances and weights."""
    start = torch.cumsum(size, 0) - size
    # Centred by class first: sums over millions of equal-sized losses would lose the digits that matter.
    centre = torch.zeros(len(size), dtype=ordered.dtype).index_add_(0, y, ordered) / size.clamp(min=1)
    x = ordered - centre[y]
    before = torch.cat([x.new_zeros(1), torch.cumsum(x, 0)])
    squares = torch.cat([x.new_zeros(1), torch.cumsum(x * x, 0)])
    left = torch.arange(len(x)) - start[y] + 1
    right = size[y] - left
    left_sum = before[1:] - before[start[y]]
    right_sum = before[start + size][y] - before[1:]
    gain = left_sum**2 / left + right_sum**2 / right.clamp(min=1)
    gain = gain.masked_fill(right == 0, -torch.inf)
    best = torch.full((len(size),), -torch.inf, dtype=x.dtype).scatter_reduce_(0, y, gain, "amax")
    position = torch.where(gain == best[y], left, torch.full_like(left, len(x) + 1))
    at = torch.full((len(size),), len(x) + 1).scatter_reduce_(0, y, position, "amin").clamp(max=size)
    middle, end = start + at, start + size
    n = torch.stack([at, size - at], 1).to(x.dtype)
    total = torch.stack([before[middle] - before[start], before[end] - before[middle]], 1)
    square = torch.stack([squares[middle] - squares[start], squares[end] - squares[middle]], 1)
    mean = total / n.clamp(min=1)
    variance = (square / n.clamp(min=1) - mean**2).clamp(min=0) + reg_covar
    return mean + centre[:, None], variance, n / size.clamp(min=1)[:, None]


def _expectation_maximisation(
    x: Tensor,
    y: Tensor,
    size: Tensor,
    start: tuple[Tensor, Tensor, Tensor],
    active: Tensor,
    max_iter: int,
    tol: float,
    reg_covar: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """EM on all active classes; a class stops by itself, as if it were fitted alone."""
    mean, variance, weight = start
    count = size.clamp(min=1).to(x.dtype)
    bound = torch.full_like(count, -torch.inf)
    active = active.clone()

    def by_class(values: Tensor) -> Tensor:
        return torch.zeros(len(size), 2, dtype=x.dtype).index_add_(0, y, values)

    for _ in range(max_iter):
        if not active.any():
            break
        log_joint = _log_joint(x, mean[y], variance[y], weight[y])
        log_total = torch.logsumexp(log_joint, dim=1)
        share = torch.exp(log_joint - log_total[:, None])
        n = by_class(share) + 10 * torch.finfo(x.dtype).eps
        new_mean = by_class(share * x[:, None]) / n
        new_variance = by_class(share * (x[:, None] - new_mean[y]) ** 2) / n + reg_covar
        on = active[:, None]
        mean = torch.where(on, new_mean, mean)
        variance = torch.where(on, new_variance, variance)
        weight = torch.where(on, n / n.sum(1, keepdim=True), weight)
        now = torch.zeros_like(count).index_add_(0, y, log_total) / count
        done = (now - bound).abs() < tol
        bound = torch.where(active, now, bound)
        active &= ~done
    return mean, variance, weight


def _log_joint(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Float[Tensor, "N 2"]:
    """log(weight * density) of both components at each loss."""
    distance = (x[:, None] - mean) ** 2 / variance
    return torch.log(weight.clamp(min=1e-300)) - 0.5 * (distance + torch.log(variance) + LOG_2_PI)
