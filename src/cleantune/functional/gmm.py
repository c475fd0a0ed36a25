"""Two-component Gaussian mixtures of losses, one per class, fitted by one vectorized EM for all classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

A = TypeVar("A")
B = TypeVar("B")
Normalize = Literal["none", "class", "global"]

LOG_2_PI = 1.8378770664093453
TINY_RANGE = 1e-12
"""Range of the losses of a class below which they count as equal."""
ROWS = 1 << 15
"""Losses of a block, whose intermediate values fit in the cache of a processor."""


@dataclass(frozen=True)
class ClassMixtures:
    """Fitted mixtures; component 0 ("low") has the smaller mean, component 1 ("high") the larger one.

    A class without a mixture (`fitted` is False) uses `cut`: labels with a loss up to it have the posterior 1.
    """

    mean: Float[Tensor, "C 2"]
    variance: Float[Tensor, "C 2"]
    weight: Float[Tensor, "C 2"]
    fitted: Bool[Tensor, " C"]
    """True for classes that are large and varied enough for two components."""
    cut: Float[Tensor, " C"]
    size: Int[Tensor, " C"]
    offset: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]
    """Scale of the fitted values (loss - offset) / scale."""
    replaced: int
    """Number of non-finite losses, which were replaced by the largest finite loss of their class."""

    def posterior(
        self, losses: Float[Tensor, " N"], y: Int[Tensor, " N"], *, enforce_monotone: bool = True
    ) -> Float[Tensor, " N"]:
        """Return the posterior of the low component of its class for each loss, the clean probability.

        Args:
            losses: Losses in the units of the fit, nats.
            y: Given labels.
            enforce_monotone: Set 0 at and above the high mean and at least 0.999 at and below the low mean. With
                unequal variances the wide component wins on both far sides, so that a very high loss could seem clean.

        Source: TURN (arXiv:2310.17668), section 3.
        """
        table = self._table()
        if len(losses) <= ROWS:
            return self._posterior(losses, y, table, enforce_monotone)
        parts = list(zip(torch.split(losses, ROWS), torch.split(y, ROWS), strict=True))
        return torch.cat(_map_in_threads(lambda part: self._posterior(*part, table, enforce_monotone), parts))

    def _posterior(self, losses: Tensor, y: Tensor, table: Tensor, enforce_monotone: bool) -> Tensor:
        """Return the posterior of a block of losses."""
        low, inverse, constant, slope, curve, gap, cut = table[y].unbind(1)
        x = (losses.double() - low) * inverse
        p = torch.sigmoid(torch.addcmul(constant, torch.addcmul(slope, curve, x), x))
        if enforce_monotone:
            p = torch.where(x >= gap, 0.0, p)
            p = torch.where(x <= 0, p.clamp(min=0.999), p)
        if not self.fitted.all():
            p = torch.where(self.fitted[y], p, (losses.double() <= cut).double())
        return torch.where(torch.isfinite(losses), p, 0.0).float()

    def _table(self) -> Float[Tensor, "C 7"]:
        """Return per class the terms of the log odds of the low component, a polynomial in the scaled loss.

        The columns are the low mean (in nats), the inverse of the scale, the three coefficients of the polynomial in
        (loss - low mean) / scale, the distance of the means, and the cut.
        """
        weight, inverse = self.weight.clamp(min=1e-300).log(), 1 / self.variance
        gap = self.mean[:, 1] - self.mean[:, 0]
        height = weight - 0.5 * self.variance.log()
        constant = height[:, 0] - height[:, 1] + 0.5 * gap.square() * inverse[:, 1]
        curve = 0.5 * (inverse[:, 1] - inverse[:, 0])
        low = self.offset + self.mean[:, 0] * self.scale
        return torch.stack([low, 1 / self.scale, constant, -gap * inverse[:, 1], curve, gap, self.cut.double()], 1)


def fit_class_mixtures(
    losses: Float[Tensor, " N"],
    y: Int[Tensor, " N"],
    classes: int,
    *,
    normalize: Normalize = "none",
    max_iter: int = 10,
    tol: float = 1e-2,
    reg_covar: float = 5e-4,
    smallest: int = 10,
) -> ClassMixtures:
    """Fit a two-component mixture to the losses of each class, all classes at once.

    Every iteration is one pass over the N losses with sums by class, O(N) for any number of classes. The losses are
    sorted by class once and fitted in blocks of whole classes that stay in the processor's cache. EM starts from the
    exact two-means split of each class, which a sort finds in one dimension; scikit-learn starts from a random k-means.
    Stopping rule, regularizer and update are those of scikit-learn's GaussianMixture.

    Args:
        losses: Cross-entropy of each sample, nats.
        y: Given labels.
        classes: Number of classes C.
        normalize: Scaling of the losses: `none`, or to 0..1 by `class` or over all (`global`).
        max_iter: Maximum number of EM iterations.
        tol: Change of the mean log-likelihood of a class below which it has converged.
        reg_covar: Number added to the variances.
        smallest: Smallest class that is fitted. Of smaller ones the lower half is trusted, at least one sample; of a
            class with equal losses all samples are.

    Raises:
        ValueError: No loss is finite.

    Source: TURN (arXiv:2310.17668), section 3; iterations, tolerance and regularizer as DivideMix (arXiv:2002.07394).
    """
    x, replaced = _finite(losses, y, classes)
    size = torch.bincount(y, minlength=classes)
    ordered = _by_class(x, y)
    low, high = _extremes(ordered, size)
    offset, scale = _units(low, high, normalize)
    spread = (high - low) / scale
    fitted = (size >= max(smallest, 2)) & (spread > TINY_RANGE)
    half = (torch.cumsum(size, 0) - size + (size - 1).clamp(min=0) // 2).clamp(max=len(x) - 1)
    cut = torch.where(spread > TINY_RANGE, ordered[half].double(), high)
    mean, weight = torch.zeros(2, classes, 2, dtype=torch.float64)
    variance = torch.full((classes, 2), reg_covar, dtype=torch.float64)
    there = size.nonzero().flatten()
    ends = torch.cumsum(size, 0)

    def fit(block: slice) -> None:
        mine = there[block]
        n = size[mine]
        start = int(ends[mine[0]] - n[0])
        z = ordered[start : start + int(n.sum())].double()
        z = (z - offset[mine].repeat_interleave(n)) / scale[mine].repeat_interleave(n)
        begun = _two_means(z, n, reg_covar)
        mean[mine], variance[mine], weight[mine] = _expectation_maximization(
            z, n, begun, fitted[mine], max_iter, tol, reg_covar
        )

    _map_in_threads(fit, list(_blocks(size[there])))
    swap = (mean[:, 0] > mean[:, 1])[:, None]
    mean, variance, weight = (torch.where(swap, a.flip(1), a) for a in (mean, variance, weight))
    return ClassMixtures(mean, variance, weight, fitted, cut, size, offset, scale, replaced)


def _map_in_threads(work: Callable[[A], B], parts: list[A]) -> list[B]:
    """Return the results of the parts in their order, computed by as many threads as torch uses.

    Blocks of `ROWS` losses are below torch's own threshold for several threads, so that the pools do not compete.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def _blocks(size: Tensor) -> Iterator[slice]:
    """Yield slices of consecutive classes with about `ROWS` losses in total, at least one class each."""
    ends = torch.cumsum(size, 0)
    first = 0
    while first < len(size):
        before = int(ends[first] - size[first])
        last = max(first + 1, int(torch.searchsorted(ends, before + ROWS, right=True)))
        yield slice(first, last)
        first = last


def _finite(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, int]:
    """Replace non-finite losses by the largest finite one of their class, or of all, and count them."""
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


def _by_class(x: Tensor, y: Tensor) -> Tensor:
    """Sort the losses by class and, within a class, in ascending order.

    Losses in float32 are sorted as one array of integers, with the class above the bits of the loss. These bits are in
    the order of the numbers once those of negative numbers are flipped. Integers sort several times as fast as pairs.
    """
    if x.dtype != torch.float32:
        by_loss = torch.argsort(x, stable=True)
        return x[by_loss[torch.argsort(y[by_loss], stable=True)]]
    bits = (x + 0.0).contiguous().view(torch.int32)  # + 0 turns -0 into 0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31
    keys = np.sort((bits + (y << 32)).numpy())
    back = (torch.from_numpy(keys) & 0xFFFFFFFF).sub_(2**31).int()
    return torch.where(back < 0, back ^ 0x7FFFFFFF, back).view(torch.float32)


def _extremes(ordered: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest loss of each class, 0 for an empty one."""
    end = torch.cumsum(size, 0)
    empty = size == 0
    low = ordered[(end - size).clamp(max=len(ordered) - 1)].double()
    high = ordered[(end - 1).clamp(min=0)].double()
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _units(low: Tensor, high: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Return offset and scale of each class; tiny ranges are not scaled."""
    if normalize == "none":
        return torch.zeros_like(low), torch.ones_like(low)
    if normalize == "global":
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    span = high - low
    return low.clone(), torch.where(span > TINY_RANGE, span, torch.ones_like(span))


def _two_means(ordered: Tensor, size: Tensor, reg_covar: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best two-means split of each class and return means, variances and weights."""
    y = torch.arange(len(size)).repeat_interleave(size)
    end = torch.cumsum(size, 0)
    start = end - size
    # Losses are centered by class first, because sums over millions of them would lose precision.
    center = _sums(ordered, start) / size
    x = ordered - center[y]
    before = torch.cat([x.new_zeros(1), torch.cumsum(x, 0)])
    squares = torch.cat([x.new_zeros(1), torch.cumsum(x * x, 0)])
    left = torch.arange(1, len(x) + 1) - start[y]
    right = size[y] - left
    left_sum = before[1:] - before[start][y]
    right_sum = before[end][y] - before[1:]
    gain = left_sum.square_().div_(left) + right_sum.square_().div_(right.clamp(min=1))
    gain[end - 1] = -torch.inf  # the only split of a class of one
    best = torch.from_numpy(np.maximum.reduceat(gain.numpy(), start.numpy()))
    position = torch.where(gain == best[y], left, len(x) + 1)
    at = torch.from_numpy(np.minimum.reduceat(position.numpy(), start.numpy()))
    middle = start + at
    n = torch.stack([at, size - at], 1).double()
    total = torch.stack([before[middle] - before[start], before[end] - before[middle]], 1)
    square = torch.stack([squares[middle] - squares[start], squares[end] - squares[middle]], 1)
    mean = total / n.clamp(min=1)
    variance = (square / n.clamp(min=1) - mean**2).clamp(min=0) + reg_covar
    return mean + center[:, None], variance, n / size[:, None]


def _sums(x: Tensor, start: Tensor) -> Tensor:
    """Sum over each class, none of which is empty."""
    return torch.from_numpy(np.add.reduceat(x.numpy(), start.numpy()))


def _expectation_maximization(
    x: Tensor,
    size: Tensor,
    initial: tuple[Tensor, Tensor, Tensor],
    active: Tensor,
    max_iter: int,
    tol: float,
    reg_covar: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run EM on all active classes; each class stops on its own, as if it were fitted alone.

    Only the responsibilities of the first component are computed; the sums of the second are the differences to sums
    over all losses, which are the same in all iterations.

    Args:
        x: Losses, sorted by class.
        size: Sizes of the classes.
        initial: Initial means, variances and weights.
        active: Classes to fit.
        max_iter: Maximum number of iterations.
        tol: Change of the mean log-likelihood of a class below which it stops.
        reg_covar: Number added to the variances.
    """
    mean, variance, weight = initial
    ends = torch.cumsum(size, 0)
    center = _sums(x, ends - size) / size
    x = x - center.repeat_interleave(size)
    squares = _sums(x * x, ends - size)
    mean = mean - center[:, None]
    bound = torch.full((len(size),), -torch.inf, dtype=x.dtype)
    mean, variance, weight = (v.clone() for v in (mean, variance, weight))
    here = torch.arange(len(size))  # classes whose losses are still in x
    for _ in range(max_iter):
        live = active[here]
        if not live.any():
            break
        if 4 * int(size[here[live]].sum()) <= 3 * len(x):
            x, here = x[live.repeat_interleave(size[here])], here[live]
            live = active[here]
        n_here, m, v, w = size[here], mean[here], variance[here], weight[here]
        constant = torch.log(w.clamp(min=1e-300)) - 0.5 * (m.square() / v + torch.log(v))
        slope, curve = m / v, -0.5 / v
        share, first, second, left = _moments(x, n_here, *((a[:, 1] - a[:, 0]) for a in (constant, slope, curve)))
        n = torch.stack([share, n_here - share], 1).clamp(min=0) + 10 * torch.finfo(x.dtype).eps
        moved = torch.stack([first, -first], 1) / n
        around = torch.stack([second, squares[here] - second], 1) / n
        now = constant[:, 0] - 0.5 * LOG_2_PI + (curve[:, 0] * squares[here] + left) / n_here
        on = live[:, None]
        mean[here] = torch.where(on, moved, m)
        variance[here] = torch.where(on, (around - moved.square()).clamp(min=0) + reg_covar, v)
        weight[here] = torch.where(on, n / n.sum(1, keepdim=True), w)
        done = (now - bound[here]).abs() < tol
        bound[here] = now
        active = active.index_put((here,), live & ~done)
    return mean + center[:, None], variance, weight


def _moments(
    x: Tensor, size: Tensor, constant: Tensor, slope: Tensor, curve: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum by class the responsibilities r of the first component, r x, r x^2, and log(1 + odds).

    Args:
        x: Centered losses, sorted by class.
        size: Sizes of the classes.
        constant: Constant coefficient of the log odds of the second component, a polynomial in x.
        slope: Linear coefficient.
        curve: Quadratic coefficient.
    """
    out, ends = x.new_zeros(4, len(size)), torch.cumsum(size, 0)
    for begin in range(0, len(x), ROWS):
        part = x[begin : begin + ROWS]
        # Classes of this part and their starts in it; only a class larger than a part is divided.
        low = int(torch.searchsorted(ends, begin, right=True))
        high = int(torch.searchsorted(ends, begin + len(part), right=False)) + 1
        start = (ends[low:high] - size[low:high] - begin).clamp(min=0)
        count = (ends[low:high] - begin).clamp(max=len(part)) - start
        mine = torch.arange(low, high).repeat_interleave(count)
        of = [v.index_select(0, mine) for v in (curve, slope, constant)]
        odds = torch.addcmul(of[2], torch.addcmul(of[1], of[0], part), part)
        tail = odds.abs().neg_().exp_()
        out[3, low:high] += _sums(torch.log1p(tail).add_(odds.clamp(min=0)), start)
        small = tail.div_(1 + tail)
        share = torch.where(odds > 0, small, 1 - small)
        for k in range(3):
            out[k, low:high] += _sums(share, start)
            share = share * part
    return out[0], out[1], out[2], out[3]
