"""Two-component Gaussian mixtures of losses, one per class, all classes fitted by one vectorized EM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

A = TypeVar("A")
B = TypeVar("B")
Normalize = Literal["none", "class", "global"]

LOG_2_PI = 1.8378770664093453
TINY_RANGE = 1e-12
ROWS = 1 << 15
"""Losses that are worked on at a time: their intermediate values fit in a processor's cache."""


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
        self, losses: Float[Tensor, " N"], y: Int[Tensor, " N"], *, enforce_monotone: bool = True
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
        table = self._table()
        if len(losses) <= ROWS:
            return self._judged(losses, y, table, enforce_monotone)
        parts = list(zip(torch.split(losses, ROWS), torch.split(y, ROWS), strict=True))
        return torch.cat(_map_in_threads(lambda part: self._judged(*part, table, enforce_monotone), parts))

    def _judged(self, losses: Tensor, y: Tensor, table: Tensor, enforce_monotone: bool) -> Tensor:
        low, inverse, constant, slope, curve, gap, cut = table[y].unbind(1)  # one look at the table, not seven
        x = (losses.double() - low) * inverse
        p = torch.sigmoid(torch.addcmul(constant, torch.addcmul(slope, curve, x), x))
        if enforce_monotone:
            p = torch.where(x >= gap, 0.0, p)
            p = torch.where(x <= 0, p.clamp(min=0.999), p)
        if not self.fitted.all():
            p = torch.where(self.fitted[y], p, (losses.double() <= cut).double())
        return torch.where(torch.isfinite(losses), p, 0.0).float()

    def _table(self) -> Float[Tensor, "C 7"]:
        """By class, from a loss to the log odds of its low component, a polynomial in the distance to the low mean.

        The low mean and the inverse of the scale, in and to units of the loss; constant, slope and curve; the distance
        of the means; the cut.
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

    Every iteration is one pass of sums by class over the N losses: O(N) whatever the number of classes. The losses are
    sorted by class once and then fitted in blocks of whole classes that stay in the processor's cache, so memory beyond
    a few numbers a loss depends on the largest class alone. It starts
    from the exact two-means split of each class (in one dimension a sort finds it), where scikit-learn starts from
    a random k-means; stopping rule, regularizer and update are those of scikit-learn's GaussianMixture.

    Args:
        losses: Cross-entropy of each sample, nats.
        y: Given labels.
        classes: Number of classes C.
        normalize: `none` fits the losses as they are, `class` and `global` scale them to 0..1 first (spec 1.5).
        max_iter: EM iterations at the most.
        tol: A class is done when its mean log-likelihood changes by less.
        reg_covar: Added to the variances.
        smallest: A class with fewer samples is not fitted: its lower half is trusted, at least one (spec 1.6).
            Neither is a class whose losses are all equal: it is trusted whole.

    Raises:
        ValueError: No loss is finite.

    Source: arXiv:2310.17668, section 3; settings from the spec, 1.4.
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
    """Runs of neighboring classes with about `ROWS` losses together, at least one class each."""
    ends = torch.cumsum(size, 0)
    first = 0
    while first < len(size):
        before = int(ends[first] - size[first])
        last = max(first + 1, int(torch.searchsorted(ends, before + ROWS, right=True)))
        yield slice(first, last)
        first = last


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


def _by_class(x: Tensor, y: Tensor) -> Tensor:
    """The losses by class and, within a class, in ascending order.

    Losses in float32 are sorted as one array of integers, the class above the loss's bits, which are in the order of
    the numbers once those of negative ones are flipped; processors sort integers several times as fast as pairs.
    """
    if x.dtype != torch.float32:
        by_loss = torch.argsort(x, stable=True)
        return x[by_loss[torch.argsort(y[by_loss], stable=True)]]
    bits = (x + 0.0).contiguous().view(torch.int32)  # + 0: there is one zero
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31
    keys = np.sort((bits + (y << 32)).numpy())
    back = (torch.from_numpy(keys) & 0xFFFFFFFF).sub_(2**31).int()
    return torch.where(back < 0, back ^ 0x7FFFFFFF, back).view(torch.float32)


def _extremes(ordered: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest loss of each class; 0 and 0 of an empty one."""
    end = torch.cumsum(size, 0)
    empty = size == 0
    low = ordered[(end - size).clamp(max=len(ordered) - 1)].double()
    high = ordered[(end - 1).clamp(min=0)].double()
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _units(low: Tensor, high: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Offset and scale of each class; a range that is almost nothing is not scaled."""
    if normalize == "none":
        return torch.zeros_like(low), torch.ones_like(low)
    if normalize == "global":
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    span = high - low
    return low.clone(), torch.where(span > TINY_RANGE, span, torch.ones_like(span))


def _two_means(ordered: Tensor, size: Tensor, reg_covar: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best split of each class into two runs of its sorted losses, as means, variances and weights."""
    y = torch.arange(len(size)).repeat_interleave(size)
    end = torch.cumsum(size, 0)
    start = end - size
    # Centered by class first: sums over millions of equal-sized losses would lose the digits that matter.
    center = _sums(ordered, start) / size
    x = ordered - center[y]
    before = torch.cat([x.new_zeros(1), torch.cumsum(x, 0)])
    squares = torch.cat([x.new_zeros(1), torch.cumsum(x * x, 0)])
    left = torch.arange(1, len(x) + 1) - start[y]
    right = size[y] - left
    left_sum = before[1:] - before[start][y]
    right_sum = before[end][y] - before[1:]
    gain = left_sum.square_().div_(left) + right_sum.square_().div_(right.clamp(min=1))
    gain[end - 1] = -torch.inf  # a class of one has its only split there
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
    """The sum over each class; none is empty."""
    return torch.from_numpy(np.add.reduceat(x.numpy(), start.numpy()))


def _expectation_maximization(
    x: Tensor,
    size: Tensor,
    begun: tuple[Tensor, Tensor, Tensor],
    active: Tensor,
    max_iter: int,
    tol: float,
    reg_covar: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """EM on all active classes; a class stops by itself, as if it were fitted alone.

    Losses are centered by class first. Of two components one share is enough: what the other has is what is left of
    sums that stay the same in all iterations.
    """
    mean, variance, weight = begun
    ends = torch.cumsum(size, 0)
    center = _sums(x, ends - size) / size
    x = x - center.repeat_interleave(size)
    squares = _sums(x * x, ends - size)
    mean = mean - center[:, None]
    bound = torch.full((len(size),), -torch.inf, dtype=x.dtype)
    mean, variance, weight = (v.clone() for v in (mean, variance, weight))
    here = torch.arange(len(size))  # classes whose losses are still looked at
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
    """Sums by class [C]: of the first component's shares, of shares times x and times x^2, and of log(1 + odds).

    Args:
        x: Centered losses, by class.
        size: Of the classes.
        constant: With `slope` and `curve`, the log odds of the second component, a polynomial in x.
        slope: As `constant`.
        curve: As `constant`.
    """
    out, ends = x.new_zeros(4, len(size)), torch.cumsum(size, 0)
    for begin in range(0, len(x), ROWS):
        part = x[begin : begin + ROWS]
        # The classes of this part, and where each begins in it; only a class larger than a part is cut.
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
