"""Likelihood of a noise model with its gradient in closed form, and the L-BFGS search for its maximum.

Arrays are class by sample, [C, N], and samples are in order of label and stratum. Softmax and sums over classes then
run along memory even where classes are few, and the gradients need one sum over each group of equal label and stratum.
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

MIN_PROBABILITY = 1e-6
EXCLUDED_LOGIT = -1e9
"""Logit of the class that a wrong label cannot name: the true one."""
MIN_LIKELIHOOD = 1e-12
"""Likelihood below which a sample counts as this much and has no gradient."""
HISTORY, SHORT_HISTORY = 10, 4
"""Steps that L-BFGS remembers, and their number from `MANY_PARAMETERS` on."""
MANY_PARAMETERS = 100_000
MIN_GAIN = 0.01
"""Gain of the last step, in nats over all samples together; chance moves a likelihood by far more."""

Parameters = dict[str, Tensor]
"""`named` [C, C]: logits of which class a wrong label names, by true class; `rate` [C] and `level` [B]: summands of the
logit of the noise rate; `log_s`; with more than one stratum also `local`, a logit, and `local_log_s`."""


class Likelihood:
    """Mean log-likelihood of given labels, P(given | x) = sum_k softmax(s log p)_k P(given | true = k, x)."""

    def __init__(
        self, log_p: Float[Tensor, "N C"], y: Int[Tensor, " N"], stratum: Int[Tensor, " N"], num_strata: int,
        sharpness: float | None,
    ) -> None:  # fmt: skip
        """Sort the samples by label and stratum.

        Args:
            log_p: Logarithms of probabilities.
            y: Given labels.
            stratum: Stratum of each sample.
            num_strata: B; with more than one, wrong labels may also follow the sample's own probabilities.
            sharpness: s; None has a gradient by `log_s` as well.
        """
        self.num_classes, self.num_strata, self.count = log_p.shape[1], num_strata, len(y)
        key, order = (y * num_strata + stratum).sort(stable=True)
        self.log_p, self.y = log_p[order].T.contiguous(), y[order]
        group, size = torch.unique_consecutive(key, return_counts=True)
        self.label, self.stratum = group // num_strata, group % num_strata
        self.begin = (size.cumsum(0) - size).numpy()
        self.group_of = torch.arange(len(group)).repeat_interleave(size)
        self.is_true = self.label == torch.arange(self.num_classes)[:, None]  # [C, groups]
        self.model = None if sharpness is None else torch.softmax(sharpness * self.log_p, 0)

    def __call__(self, at: Parameters) -> tuple[float, Parameters]:
        """Return the value and its gradient by every parameter."""
        s = float(at["log_s"].exp())
        model = torch.softmax(s * self.log_p, 0) if self.model is None else self.model
        others = torch.softmax(at["named"].clone().fill_diagonal_(EXCLUDED_LOGIT), 1)
        nu = torch.sigmoid(at["rate"][:, None] + at["level"])[:, self.stratum]
        named = others[:, self.label]
        w = float(torch.sigmoid(at["local"])) if self.num_strata > 1 else 0.0
        chance = torch.where(self.is_true, 1 - nu, (1 - w) * nu * named)[:, self.group_of]
        out: Parameters = {}
        if w:
            local, bend = self._local(float(at["local_log_s"].exp()))
            sample_nu = nu[:, self.group_of]
            chance.addcmul_(local, sample_nu, value=w)
        part = model * chance
        p = part.sum(0)
        share = torch.where(p > MIN_LIKELIHOOD, 1 / (self.count * p), torch.zeros_like(p))
        if self.model is None:
            # d softmax(s log p)_k = m_k (log p_k - sum m log p), with the shares of k in P for m on the outside
            counted = torch.where(p > MIN_LIKELIHOOD, 1 / self.count, 0.0)
            out["log_s"] = s * (chance.mul_(share).sub_(counted).mul_(model).mul_(self.log_p)).sum()
        toward = model * share
        sums = self._sums(toward)
        by_nu = torch.where(self.is_true, -sums, (1 - w) * named * sums)
        by_named = (1 - w) * nu * sums
        if w:
            near = self._sums(toward.mul_(local))
            by_nu += w * near
            out["local"] = w * (1 - w) * (nu * (near - named * sums)).sum()
            out["local_log_s"] = w * (toward.mul_(sample_nu).mul_(bend)).sum()
        by_rate = by_nu * nu * (1 - nu)
        out["rate"] = by_rate.sum(1)
        out["level"] = torch.zeros(self.num_strata).index_add_(0, self.stratum, by_rate.sum(0))
        pairs = torch.zeros(self.num_classes, self.num_classes).index_add_(1, self.label, by_named)
        out["named"] = others * (pairs - (others * pairs).sum(1, keepdim=True))
        return float(p.clamp_(min=MIN_LIKELIHOOD).log_().sum(dtype=torch.float64)) / self.count, out

    def _sums(self, x: Float[Tensor, "C N"]) -> Float[Tensor, "C groups"]:
        """Return the sum over each group of equal label and stratum."""
        return torch.from_numpy(np.add.reduceat(x.numpy(), self.begin, axis=1))

    def _local(self, s: float) -> tuple[Float[Tensor, "C N"], Float[Tensor, "C N"]]:
        """Return the chance that the sample's own probabilities name the label if the true class is k.

        It is 0 where k is the label. Next to it the gradient of its logarithm by that of the sharpness.
        """
        q = torch.softmax(s * self.log_p, 0)
        rest = (1 - q).clamp_(min=MIN_PROBABILITY)
        local = q.gather(0, self.y[None]) / rest
        centered = self.log_p - (q * self.log_p).sum(0)
        bend = (q.div_(rest).mul_(centered).add_(centered.gather(0, self.y[None]))).mul_(s)
        bend.masked_fill_(local >= 1, 0.0)
        return local.clamp_(max=1).scatter_(0, self.y[None], 0.0), bend


def maximize_likelihood(
    value: Callable[[Parameters], tuple[float, Parameters]],
    start: Parameters,
    free: list[str],
    max_steps: int,
    count: int,
) -> Parameters:
    """Return the parameters of the highest value that L-BFGS reaches.

    Args:
        value: Function that returns a mean over samples in nats, and its gradient by the free parameters at least.
        start: All parameters.
        free: Names of those that may move.
        max_steps: Steps at most.
        count: Number of samples.
    """
    shapes = {name: start[name].shape for name in free}

    def unflatten(flat: np.ndarray) -> Parameters:
        parts = torch.split(torch.from_numpy(flat.astype(np.float32)), [math.prod(s) for s in shapes.values()])
        moved = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return start | moved

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        height, slope = value(unflatten(flat))
        return -height, -np.concatenate([slope[name].double().numpy().ravel() for name in free])

    begin = np.concatenate([start[name].double().numpy().ravel() for name in free])
    history = HISTORY if len(begin) < MANY_PARAMETERS else SHORT_HISTORY
    options = {"maxiter": max_steps, "maxcor": history, "ftol": MIN_GAIN / count, "gtol": 1e-7}
    # Idle threads of scipy's BLAS spin on the cores that torch's threads need: on two cores the search took six times
    # as long without this limit.
    with _thread_pools().limit(limits=1, user_api="blas"):
        return unflatten(minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).x)


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()
