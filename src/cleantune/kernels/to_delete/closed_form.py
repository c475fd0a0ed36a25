"""Mean losses of a linear head with their gradients written out: what a probe on cached features waits for.

Autograd does the same in some fifteen nodes, which take such a small step longer than its products do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional import losses
from cleantune.methods.protocol import Batch, Inputs, LossOutput, Output

if TYPE_CHECKING:
    from cleantune.training.models import LinearHead


def learns_alone(net: object) -> TypeGuard[LinearHead]:
    """Whether a loss here writes out the gradient of this net: of a plain linear head that learns."""
    from cleantune.training.models import LinearHead

    return type(net) is LinearHead and torch.is_grad_enabled()  # a subclass may have a forward of its own


def mean_gce(net: Callable[..., Output], batch: Batch, q: float) -> Tensor | LossOutput:
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
    if not learns_alone(net):
        return losses.mean(losses.gce(net(x).logits, batch.y, q), batch.weight)
    with torch.no_grad():
        z, scores = _scores(net, x)
        log_p = scores.log_softmax(0)
        given = batch.y.unsqueeze(0)
        share = batch.weight / len(z)
        loss = log_p.gather(0, given)[0]
        pull = share
        if q:
            loss = torch.expm1(loss.mul_(q))
            pull = torch.addcmul(share, loss, share)
        slope = log_p.exp_().mul_(pull).scatter_add_(0, given, pull.neg().unsqueeze(0))
        total = loss.dot(share) * (-1 / q if q else -1)
        return LossOutput(
            total, {}, gradients=((net.linear.weight, (slope @ z)), (net.linear.bias, slope.sum(1)))
        )


def mean_elr(
    head: LinearHead,
    batch: Batch,
    target: Callable[[Int[Tensor, " B"], Float[Tensor, "B C"]], Float[Tensor, "B C"]],
    strength: float,
    clamp: float,
) -> LossOutput:
    """Mean of cross-entropy and `strength` times ELR's regularizer, weighed, with its gradients.

    By score they are `(w_i / B) (p_ij - [j = y] + p_ij (g_ij - sum_c p_ic g_ic))`, where `g_ij` is
    `-strength t_ij / (1 - <t_i, p_i>)` or, where p_ij is clamped, 0.

    Args:
        head: Which `learns_alone`.
        batch: Its first view is [B, D].
        target: From the rows of the batch and their clamped probabilities to the targets t.
        strength: Weight of the regularizer.
        clamp: Probabilities are kept so far from 0 and 1.

    Source: as `losses.elr_regularizer`, and its derivative.
    """
    with torch.no_grad():
        z, scores = _scores(head, batch.views[0])
        log_p = scores.t().contiguous().log_softmax(1)
        p = log_p.exp()
        kept = p.clamp(clamp, 1 - clamp)
        t = target(batch.rows, kept)
        agreement = (t * kept).sum(1).clamp_(max=losses.AGREEMENT)
        share, given = batch.weight / len(z), batch.y.unsqueeze(1)
        loss = torch.log1p(-agreement).mul_(strength).sub_(log_p.gather(1, given)[:, 0])
        steep = (agreement < losses.AGREEMENT) * (-strength / (1 - agreement))
        g = (t * (kept == p)).mul_(steep.unsqueeze(1))
        slope = (g - (g * p).sum(1, keepdim=True)).add_(1).mul_(p).mul_(share.unsqueeze(1))
        slope.scatter_add_(1, given, share.neg().unsqueeze(1))
        weight, bias = head.linear.weight, head.linear.bias
        return LossOutput(loss.dot(share), {}, gradients=((weight, (slope.t() @ z)), (bias, slope.sum(0))))


def _scores(head: LinearHead, x: Inputs) -> tuple[Float[Tensor, "B D"], Float[Tensor, "C B"]]:
    """Standardized features, and scores by class and sample: `W z'` takes .4 to .9 of the time of `z W'`."""
    z = head.standardized(x)  # type: ignore[arg-type]
    return z, (head.linear.weight @ z.t()).add_(head.linear.bias.unsqueeze(1))
