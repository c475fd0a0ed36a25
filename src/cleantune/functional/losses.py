"""Losses as pure functions: one value per sample, not reduced; the caller weights and averages."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

TINY = 1e-8
"""Lower bound of probabilities before a logarithm."""
MAX_AGREEMENT = 1 - 1e-6
"""Upper bound of <t, p> in the ELR regularizer."""


def cross_entropy(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Compute the cross-entropy of each sample in nats, -log p_y.

    Args:
        logits: Logits.
        y: Given labels, 0..C-1.

    Returns:
        One loss per sample, not reduced.
    """
    return functional.cross_entropy(logits.float(), y, reduction="none")


def gce(logits: Float[Tensor, "B C"], y: Int[Tensor, " B"], q: float = 0.7) -> Float[Tensor, " B"]:
    """Compute the generalized cross-entropy of each sample, (1 - p_y^q) / q.

    q -> 0 is cross-entropy, q = 1 is 1 - p_y. A larger q reduces the gradient of confidently contradicted labels.
    The gradient is p_y^q times that of cross-entropy; p_y is not clamped, so no sample's gradient is cut to zero.

    Args:
        logits: Logits.
        y: Given labels, 0..C-1.
        q: Exponent in [0, 1].

    Returns:
        One loss per sample, not reduced.

    Source: Zhang & Sabuncu, NeurIPS 2018, the loss L_q (arXiv:1805.07836), without its truncation.
    """
    loss = cross_entropy(logits, y)
    return loss if q == 0 else torch.expm1(loss * -q) * (-1 / q)


def soft_cross_entropy(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Compute the cross-entropy of each sample to a distribution over the classes, -sum_c t_c log p_c.

    Args:
        logits: Logits.
        target: Rows that sum to 1; no gradient flows into them.

    Returns:
        One loss per sample, not reduced.
    """
    return -(target.detach() * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)


def weighted_mean(losses: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Average weighted losses over the batch.

    The divisor is the number of samples, not the sum of the weights: a batch with small weights has a small gradient.
    """
    return (losses * weight).mean()


def elr_regularizer(p: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Compute the regularizer of ELR, log(1 - <t, p>), which is lowest where p agrees with earlier predictions.

    Args:
        p: Probabilities, through which the gradient flows.
        target: t, the moving average of earlier probabilities, without gradient; rows sum to at most 1.

    Source: Liu et al., NeurIPS 2020 (arXiv:2007.00151), equation 6.
    """
    return torch.log1p(-(target.detach() * p).sum(dim=1).clamp(max=MAX_AGREEMENT))


def squared_error(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Compute the squared difference of probabilities and target of each sample, averaged over the classes.

    Source: unlabeled loss of MixMatch (arXiv:1905.02249) and DivideMix (arXiv:2002.07394), equation 11.
    """
    return (functional.softmax(logits.float(), dim=1) - target.detach()).square().mean(dim=1)


def uniform_penalty(logits: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Compute the KL divergence from the uniform distribution to the mean prediction of the batch.

    The penalty prevents that classes are never predicted. Means are clamped to 1e-8.

    Source: DivideMix (arXiv:2002.07394), equation 12.
    """
    mean_p = functional.softmax(logits.float(), dim=1).mean(dim=0).clamp(min=TINY)
    return -(mean_p.log() + math.log(len(mean_p))).mean()


def negative_entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Compute sum_c p_c log p_c of each sample, which penalizes confidence when added to a loss.

    Source: DivideMix (arXiv:2002.07394), equation 5, for the warm-up under asymmetric noise.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * log_p).sum(dim=1)


def jsd_to_label(p: Float[Tensor, "B C"], y: Int[Tensor, " B"], base: float = math.e) -> Float[Tensor, " B"]:
    """Compute the Jensen-Shannon divergence of each prediction and its one-hot given label.

    One argument is one-hot, so only p_y counts: 0.5 (2 ln 2 + p ln p - (1 + p) ln(1 + p)), which falls in p_y.

    Args:
        p: Probabilities, rows that sum to 1.
        y: Given labels.
        base: Base of the logarithm; the largest divergence is ln 2 / ln base.

    Source: UNICON (arXiv:2203.14542), equation 2, in closed form.
    """
    p_y = p.double().gather(1, y[:, None])[:, 0]
    nats = 0.5 * (2 * math.log(2) + torch.special.xlogy(p_y, p_y) - torch.special.xlog1py(1 + p_y, p_y))
    divergence: Tensor = nats.clamp(min=0) / math.log(base)
    return divergence.float()


def nt_xent(one: Float[Tensor, "B Z"], two: Float[Tensor, "B Z"], temperature: float) -> Float[Tensor, ""]:
    """Compute the contrastive loss of two views, in which each row has to find its other view among 2B - 1 rows.

    Args:
        one: Projections of the first views, which are normalized here.
        two: Projections of the second views, in the same order.
        temperature: Divisor of the cosine similarities.

    Source: SimCLR (arXiv:2002.05709), equation 1, as UNICON uses it (arXiv:2203.14542, equation 7).
    """
    z = functional.normalize(torch.cat([one, two]).float(), dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(one))
    return functional.cross_entropy(similarity, other)


def sharpen(p: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """Sharpen distributions to p^(1/T), normalized by row.

    Source: MixMatch (arXiv:1905.02249), equation 7.
    """
    return functional.softmax(p.clamp(min=TINY).log() / temperature, dim=1)


def consistency(
    f: Float[Tensor, "B D"], z: Float[Tensor, "B D"], reduction: Literal["row_mean", "element_mean"] = "row_mean"
) -> Float[Tensor, ""]:
    """Compute L_MSE of NMTune, the squared distance of features and embeddings with rows of length 1.

    It equals 2 - 2 cos(f, z), averaged over the rows: 0 if all rows are parallel, 4 if all are opposite, independent of
    both scales. A row of zeros stays zero.

    Args:
        f: Features of the frozen backbone; no gradient flows into them.
        z: Inputs of the classifier for the same samples.
        reduction: `row_mean` (paper) averages over rows, `element_mean` (official code) over all B D elements.

    Source: NMTune (arXiv:2309.17002), equation 3, with normalized rows.
    """
    apart = functional.normalize(z.float(), dim=1) - functional.normalize(f.detach().float(), dim=1)
    return apart.square().mean() if reduction == "element_mean" else apart.square().sum(dim=1).mean()


def covariance(z: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Compute L_COV of NMTune, the squared covariances of all pairs of different dimensions, divided by D.

    It grows with the fourth power of the scale of z. If there are fewer rows than dimensions, it is computed from the
    B x B Gram matrix, which has the same Frobenius norm as the D x D covariance.

    Args:
        z: Inputs of the classifier, at least two rows.

    Raises:
        ValueError: There is a single row.

    Source: NMTune (arXiv:2309.17002), equation 4, after VICReg (arXiv:2105.04906).
    """
    count, width = z.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 rows, not {count}")
    centered = z.double() - z.double().mean(dim=0)
    gram = centered @ centered.T if count < width else centered.T @ centered
    total, diagonal = gram.square().sum(), centered.square().sum(dim=0).square().sum()
    loss: Tensor = (total - diagonal) / (count - 1) ** 2 / width
    return loss.float()


def dominant_singular_value(
    z: Float[Tensor, "B D"], top_k: int = 1, reduction: Literal["sum", "mean"] = "sum"
) -> Float[Tensor, ""]:
    """Compute L_SVD of NMTune, minus the share of the largest singular values in the sum of all, -1..-1/min(B, D).

    z is neither centered nor normalized; its scale has no effect.

    Args:
        z: Inputs of the classifier.
        top_k: Number of the largest values, at most min(B, D).
        reduction: Sum of their shares (paper, with one) or mean (official code, with five).

    Source: NMTune (arXiv:2309.17002), equation 5, after batch spectral penalization (Chen et al., ICML 2019).
    """
    values = singular_values(z)
    top = values[-top_k:] / values.sum().clamp(min=TINY)
    return -(top.sum() if reduction == "sum" else top.mean()).float()


def singular_values(z: Float[Tensor, "B D"]) -> Float[Tensor, " K"]:
    """Compute the min(B, D) singular values in ascending order, in float64, from the smaller Gram matrix.

    The gradient exists for equal values too. Values below the rounding error are zero, and so is their gradient. They
    are NaN if z is not finite.
    """
    x = z.double()
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    if not torch.isfinite(gram).all():
        return gram.sum(dim=1) * torch.nan
    squares = torch.linalg.eigvalsh(gram)
    is_positive = squares > torch.finfo(torch.float64).eps * max(z.shape) * squares[-1:].detach()
    return torch.where(
        is_positive, torch.where(is_positive, squares, torch.ones_like(squares)).sqrt(), torch.zeros_like(squares)
    )
