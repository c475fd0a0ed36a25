"""The likelihood of a noise model and its slope, written out, and the search for its top: what `cutoff` fits with.

Arrays are class by sample, [C, N], and samples lie in order of label and stratum. Softmax and sums over classes then
run along memory even where classes are few, and what the slopes need is one sum over each run of like samples.
Autograd takes several times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController
from torch import Tensor

TINY = 1e-6
FAR = -1e9
"""The logit of the class that a wrong label cannot name: the true one."""
LEAST = 1e-12
"""A likelihood below it counts as this much and has no slope."""
HISTORY, SHORT = 10, 4
"""Steps that the search remembers, and how many where there are `LARGE` parameters."""
LARGE = 100_000
GAIN = 0.01
"""Nats over all samples together; a step that gains less is the last. Chance moves a likelihood by far more."""

Parameters = dict[str, Tensor]
"""`named` [C, C]: logits of which class a wrong label names, by true class; `rate` [C] and `level` [B]: summands of the
logit of the noise rate; `log_s`; with more than one stratum also `local`, a logit, and `local_log_s`."""


class Likelihood:
    """Mean log-likelihood of given labels, P(given | x) = sum_k softmax(s log p)_k P(given | true = k, x)."""

    def __init__(
        self, lp: Float[Tensor, "N C"], y: Int[Tensor, " N"], stratum: Int[Tensor, " N"], strata: int,
        sharpness: float | None,
    ) -> None:  # fmt: skip
        """Brings the samples into order.

        Args:
            lp: Logarithms of probabilities.
            y: Given labels.
            stratum: Of each sample.
            strata: B; with more than one, wrong labels may also follow the sample's own probabilities.
            sharpness: s; None has a slope by `log_s` as well.
        """
        self.classes, self.strata, self.count = lp.shape[1], strata, len(y)
        key, order = (y * strata + stratum).sort(stable=True)
        self.lp, self.y = lp[order].T.contiguous(), y[order]
        run, size = torch.unique_consecutive(key, return_counts=True)
        self.label, self.stratum = run // strata, run % strata
        self.begin = (size.cumsum(0) - size).numpy()
        self.of = torch.arange(len(run)).repeat_interleave(size)
        self.right = self.label == torch.arange(self.classes)[:, None]  # [C, runs]: a label that is the true class
        self.model = None if sharpness is None else torch.softmax(sharpness * self.lp, 0)

    def __call__(self, at: Parameters) -> tuple[float, Parameters]:
        """The value, and its slope by every parameter."""
        s = float(at["log_s"].exp())
        model = torch.softmax(s * self.lp, 0) if self.model is None else self.model
        others = torch.softmax(at["named"].clone().fill_diagonal_(FAR), 1)
        nu = torch.sigmoid(at["rate"][:, None] + at["level"])[:, self.stratum]
        named = others[:, self.label]
        w = float(torch.sigmoid(at["local"])) if self.strata > 1 else 0.0
        chance = torch.where(self.right, 1 - nu, (1 - w) * nu * named)[:, self.of]
        out: Parameters = {}
        if w:
            own, bend = self._own(float(at["local_log_s"].exp()))
            each = nu[:, self.of]
            chance.addcmul_(own, each, value=w)
        part = model * chance
        p = part.sum(0)
        share = torch.where(p > LEAST, 1 / (self.count * p), torch.zeros_like(p))
        if self.model is None:
            # d softmax(s log p)_k = m_k (log p_k - sum m log p), with the shares of k in P for m on the outside
            seen = torch.where(p > LEAST, 1 / self.count, 0.0)
            out["log_s"] = s * (chance.mul_(share).sub_(seen).mul_(model).mul_(self.lp)).sum()
        toward = model * share
        sums = self._sums(toward)
        by_nu = torch.where(self.right, -sums, (1 - w) * named * sums)
        by_named = (1 - w) * nu * sums
        if w:
            near = self._sums(toward.mul_(own))
            by_nu += w * near
            out["local"] = w * (1 - w) * (nu * (near - named * sums)).sum()
            out["local_log_s"] = w * (toward.mul_(each).mul_(bend)).sum()
        by_rate = by_nu * nu * (1 - nu)
        out["rate"] = by_rate.sum(1)
        out["level"] = torch.zeros(self.strata).index_add_(0, self.stratum, by_rate.sum(0))
        pairs = torch.zeros(self.classes, self.classes).index_add_(1, self.label, by_named)
        out["named"] = others * (pairs - (others * pairs).sum(1, keepdim=True))
        return float(p.clamp_(min=LEAST).log_().sum(dtype=torch.float64)) / self.count, out

    def _sums(self, x: Float[Tensor, "C N"]) -> Tensor:
        """The sum over each run: [C, runs]."""
        return torch.from_numpy(np.add.reduceat(x.numpy(), self.begin, axis=1))

    def _own(self, s: float) -> tuple[Tensor, Tensor]:
        """How probably the sample's own probabilities name the label if the true class is k, 0 where it is the label.

        Beside it the slope of its logarithm by that of the sharpness; both [C, N].
        """
        q = torch.softmax(s * self.lp, 0)
        rest = (1 - q).clamp_(min=TINY)
        own = q.gather(0, self.y[None]) / rest
        over = self.lp - (q * self.lp).sum(0)
        bend = (q.div_(rest).mul_(over).add_(over.gather(0, self.y[None]))).mul_(s)
        bend.masked_fill_(own >= 1, 0.0)
        return own.clamp_(max=1).scatter_(0, self.y[None], 0.0), bend


def maximize_likelihood(
    value: Callable[[Parameters], tuple[float, Parameters]], start: Parameters, free: list[str], steps: int, count: int
) -> Parameters:
    """The parameters of the highest value that L-BFGS finds in so many steps.

    Args:
        value: A mean over samples in nats, and its slope by the free parameters at least.
        start: All parameters.
        free: Those that may move.
        steps: At the most.
        count: Of the samples.
    """
    shapes = {name: start[name].shape for name in free}

    def whole(flat: np.ndarray) -> Parameters:
        parts = torch.split(torch.from_numpy(flat.astype(np.float32)), [math.prod(s) for s in shapes.values()])
        moved = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return start | moved

    def down(flat: np.ndarray) -> tuple[float, np.ndarray]:
        height, slope = value(whole(flat))
        return -height, -np.concatenate([slope[name].double().numpy().ravel() for name in free])

    begin = np.concatenate([start[name].double().numpy().ravel() for name in free])
    remembered = HISTORY if len(begin) < LARGE else SHORT
    options = {"maxiter": steps, "maxcor": remembered, "ftol": GAIN / count, "gtol": 1e-7}
    # Threads of scipy's BLAS wait for the next step by spinning, on the cores that torch's threads then lack: on two
    # cores the search took six times as long.
    with _libraries().limit(limits=1, user_api="blas"):
        return whole(minimize(down, begin, jac=True, method="L-BFGS-B", options=options).x)


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
