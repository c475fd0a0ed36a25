"""The mean loss of a linear head with its gradient written out: what a probe on cached features waits for.

Autograd does the same in some fifteen nodes, which take such a small step longer than its products do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cleantune import losses
from cleantune.learner import LinearHead
from cleantune.records import Batch, Output, Parts


def mean_gce(net: Callable[..., Output], batch: Batch, q: float) -> Tensor | Parts:
    """Mean GCE of a batch in its first view, weighed; q = 0 is cross-entropy.

    Of a plain linear head that learns alone the gradients come with it, `(w_i / B) p_iy^q (p_ij - [j = y])` by score,
    and are autograd's but for rounding. Of any other net the value alone is given, for autograd.

    Args:
        net: A linear head on cached features, or anything from a view to an Output.
        batch: Its first view is [B, D] for a head.
        q: Exponent in [0, 1].

    Source: as `losses.gce`, and its derivative.
    """
    x = batch.views[0]
    if type(net) is not LinearHead or not torch.is_grad_enabled():  # a subclass may have a forward of its own
        return losses.mean(losses.gce(net(x).logits, batch.y, q), batch.weight)
    weight, bias = net.linear.weight, net.linear.bias
    with torch.no_grad():
        z = net.standardised(x)  # type: ignore[arg-type]
        log_p = torch.addmm(bias, z, weight.t()).log_softmax(1)
        given = batch.y.unsqueeze(1)
        share = batch.weight.unsqueeze(1) / len(z)
        loss = log_p.gather(1, given)
        pull = share
        if q:
            loss = torch.expm1(loss.mul_(q))
            pull = (loss + 1).mul_(share)
        slope = log_p.exp_().mul_(pull).scatter_add_(1, given, -pull)
        total = loss.mul_(share).sum() * (-1 / q if q else -1)
        return Parts(total, {}, gradients=((weight, slope.t() @ z), (bias, slope.sum(0))))
