"""Losses as pure functions: one value per sample, never reduced; the caller weighs and averages."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

TINY = 1e-8
"""A probability below counts as this where its logarithm is taken."""
AGREEMENT = 1 - 1e-6
"""ELR's <t, p> above counts as this."""


def cross_entropy(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each sample in nats: -log p_y.

    Args:
        logits: Scores before the softmax.
        y: Given labels, 0..C-1.

    Returns:
        One loss per sample, not reduced.

    Source: spec of every baseline; arXiv:2310.17668, section 2.
    """
    return functional.cross_entropy(logits.float(), y, reduction="none")


def gce(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"], q: float = 0.7) -> Float[Tensor, " B"]:
    """Generalized cross-entropy of each sample: (1 - p_y^q) / q.

    q -> 0 is cross-entropy, q = 1 is 1 - p_y. A larger q lets a confidently contradicted label pull less.
    The gradient is p_y^q times that of cross-entropy; p_y is not clamped, so no sample's gradient is cut to zero.

    Args:
        logits: Scores before the softmax.
        y: Given labels, 0..C-1.
        q: Exponent in [0, 1].

    Returns:
        One loss per sample, not reduced.

    Source: Zhang & Sabuncu, NeurIPS 2018, the loss L_q (arXiv:1805.07836), without its truncation.
    """
    loss = cross_entropy(logits, y)
    return loss if q == 0 else torch.expm1(loss * -q) * (-1 / q)


def soft_cross_entropy(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each sample against a distribution over the classes: -sum_c t_c log p_c.

    Args:
        logits: Scores before the softmax.
        target: Rows that sum to 1; no gradient flows into them.

    Returns:
        One loss per sample, not reduced.
    """
    return -(target.detach() * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)


def weighted_mean(losses: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the batch of the losses times how far each label is trusted.

    The divisor is the number of samples, not the sum of the weights: a batch of little trusted labels moves
    the model little.
    """
    return (losses * weight).mean()


def elr_regularizer(p: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """The regularizer of early learning: log(1 - <t, p>), negative, and lowest where p agrees with its own past.

    Args:
        p: Probabilities, through which the gradient flows.
        target: t, the moving average of earlier probabilities; it takes no gradient, and rows sum to 1 at the most.

    Source: Liu et al., NeurIPS 2020 (arXiv:2007.00151), equation 6; spec 4.3.
    """
    return torch.log1p(-(target.detach() * p).sum(dim=1).clamp(max=AGREEMENT))


def squared_error(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Squared difference of probabilities and target of each sample, averaged over the classes.

    Source: the loss of unlabeled samples of MixMatch (arXiv:1905.02249) and DivideMix (arXiv:2002.07394), eq. 11.
    """
    return (functional.softmax(logits.float(), dim=1) - target.detach()).square().mean(dim=1)


def uniform_penalty(logits: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """KL divergence from the uniform distribution to the batch's mean prediction: it keeps classes from dying out.

    A mean below 1e-8 counts as 1e-8 (spec 7, "MixUp/penalty logs").

    Source: DivideMix (arXiv:2002.07394), equation 12.
    """
    mean_p = functional.softmax(logits.float(), dim=1).mean(dim=0).clamp(min=TINY)
    return -(mean_p.log() + math.log(len(mean_p))).mean()


def negative_entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """sum_c p_c log p_c of each sample; added to a loss it holds back confidence.

    Source: DivideMix (arXiv:2002.07394), equation 5: the warm-up under asymmetric noise.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * log_p).sum(dim=1)


def jsd_to_label(p: Float[Tensor, "B C"], y: Int[Tensor, " B"], base: float = math.e) -> Float[Tensor, " B"]:
    """Jensen-Shannon divergence of each prediction and its one-hot given label.

    One argument is one-hot, so only p_y counts: 0.5 (2 ln 2 + p ln p - (1 + p) ln(1 + p)), which falls in p_y.

    Args:
        p: Probabilities, rows that sum to 1.
        y: Given labels.
        base: Of the logarithm; the largest divergence is ln 2 / ln base.

    Source: UNICON (arXiv:2203.14542), equation 2; closed form: spec 4.5.
    """
    own = p.double().gather(1, y[:, None])[:, 0]
    nats = 0.5 * (2 * math.log(2) + torch.special.xlogy(own, own) - torch.special.xlog1py(1 + own, own))
    divergence: Tensor = nats.clamp(min=0) / math.log(base)
    return divergence.float()


def nt_xent(one: Float[Tensor, "B Z"], two: Float[Tensor, "B Z"], temperature: float) -> Float[Tensor, ""]:
    """Contrastive loss of two views: each row must find its other view among all 2B - 1 other rows.

    Args:
        one: Projections of the first views; they are normalized here.
        two: Of the second views, in the same order.
        temperature: Divides the cosine similarities.

    Source: SimCLR (arXiv:2002.05709), equation 1, as UNICON uses it (arXiv:2203.14542, equation 7).
    """
    z = functional.normalize(torch.cat([one, two]).float(), dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(one))
    return functional.cross_entropy(similarity, other)


def sharpen(p: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """Distributions made more certain: p^(1/T), rows summing to 1.

    Source: MixMatch (arXiv:1905.02249), equation 7.
    """
    return functional.softmax(p.clamp(min=TINY).log() / temperature, dim=1)


def consistency(
    f: Float[Tensor, "B D"], z: Float[Tensor, "B D"], reduction: Literal["row_mean", "element_mean"] = "row_mean"
) -> Float[Tensor, ""]:
    """Squared distance of features and reshaped features, both with rows of length 1: the L_MSE of NMTune.

    Equal to 2 - 2 cos(f, z), averaged over the rows: 0 where every row points the same way, 4 where all are opposite.
    Neither scale counts. A row of zeros stays zeros.

    Args:
        f: What the frozen backbone gave; no gradient flows into it.
        z: What the classifier sees of the same samples.
        reduction: `row_mean` (paper) averages over rows, `element_mean` (authors' code) over all B D elements.

    Source: NMTune (arXiv:2309.17002), equation 3, normalized by rows; nmtune spec 3.2.
    """
    apart = functional.normalize(z.float(), dim=1) - functional.normalize(f.detach().float(), dim=1)
    return apart.square().mean() if reduction == "element_mean" else apart.square().sum(dim=1).mean()


def covariance(z: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Squared covariances of all pairs of different dimensions over the batch, divided by D: the L_COV of NMTune.

    It grows with the fourth power of the scale of z. Of fewer rows than dimensions it is computed from the B x B matrix
    of inner products, which has the same Frobenius norm as the D x D covariance.

    Args:
        z: What the classifier sees; at least two rows.

    Raises:
        ValueError: There is one row, of which there is no covariance.

    Source: NMTune (arXiv:2309.17002), equation 4, after VICReg (arXiv:2105.04906); nmtune spec 3.2.
    """
    count, width = z.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 rows, not {count}")
    centered = z.double() - z.double().mean(dim=0)
    inner = centered @ centered.T if count < width else centered.T @ centered
    whole, own = inner.square().sum(), centered.square().sum(dim=0).square().sum()
    loss: Tensor = (whole - own) / (count - 1) ** 2 / width
    return loss.float()


def dominant_singular_value(
    z: Float[Tensor, "B D"], top_k: int = 1, reduction: Literal["sum", "mean"] = "sum"
) -> Float[Tensor, ""]:
    """Minus the share of the largest singular values in the sum of all: the L_SVD of NMTune, -1..-1/min(B, D).

    z is neither centered nor normalized. The scale of z does not count.

    Args:
        z: What the classifier sees.
        top_k: How many of the largest count; where there are fewer, all.
        reduction: Their sum (paper, with one), or their mean (authors' code, with five).

    Source: NMTune (arXiv:2309.17002), equation 5, after batch spectral penalization (Chen et al., ICML 2019);
    nmtune spec 3.2.
    """
    values = singular_values(z)
    top = values[-top_k:] / values.sum().clamp(min=TINY)
    return -(top.sum() if reduction == "sum" else top.mean()).float()


def singular_values(z: Float[Tensor, "B D"]) -> Float[Tensor, " K"]:
    """The min(B, D) singular values, rising, in float64, from the smaller matrix of inner products.

    Their gradient needs no gap between them: equal values have one. A value that rounding cannot tell from zero is
    zero, and so is its gradient. Where z is not finite, neither are they.
    """
    wide = z.double()
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    if not torch.isfinite(gram).all():
        return gram.sum(dim=1) * torch.nan
    squares = torch.linalg.eigvalsh(gram)
    known = squares > torch.finfo(torch.float64).eps * max(z.shape) * squares[-1:].detach()
    return torch.where(known, torch.where(known, squares, torch.ones_like(squares)).sqrt(), torch.zeros_like(squares))
