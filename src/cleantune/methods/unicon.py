"""UNICON: class-balanced selection by divergence, semi-supervised learning, and contrastive learning on the rest.

Paper: Karim et al., CVPR 2022 (arXiv:2203.14542), Algorithm 1. It differs from DivideMix in these parts: before each
network learns, both are scored together (the Jensen-Shannon divergence between their mean prediction and the given
label), equally many labels of every class are kept, targets come from weak views and MixUp mixes strong ones, and the
two strong views of each other sample attract each other.

In scope `head` the views are cached features and the contrastive loss is off: with a frozen backbone it trains the
projection alone and cannot reach the classifier. `contrast_head` switches it on, at a pure cost.

Differs from the paper or from the official code:
- the divergence is in nats, so that the branch above `d_mu` (0.7) never runs, as in the official code; `log_base` 2
  enables it (preset `paper`);
- a class with fewer samples than its share gives what it has, instead of copies of sample 0 (official code);
- both networks are scored in evaluation mode; in the official code the one that has just learned is in training mode;
- unlabeled samples per labeled one: 1 / (2R) with the kept fraction R (official code), clamped to 1..8;
- the ramp of lambda_u is a fraction of the epochs; lambda_u is smaller and the warm-up longer by default, as for
  DivideMix. The presets have the values of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.functional.selection import lowest_per_class
from cleantune.methods.dividemix import PROBE, TUNE
from cleantune.methods.mixmatch import (
    Network,
    linear_rampup,
    sample_mixup,
    semi_supervised_loss,
    soft_targets,
    unlabeled_mask,
)
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Phase, Range, Run, Scope, Selection, Stage, View

MIN_UNLABELED_RATIO, MAX_UNLABELED_RATIO = 1.0, 8.0
"""Bounds of the unlabeled samples per labeled one."""


@dataclass(frozen=True)
class UNICON:
    """Two networks, equally many labels of every class by divergence, and contrastive learning on the others."""

    scope: Scope = "head"
    """Trained part: the heads on cached views, or backbones and heads on samples."""
    log_base: Literal["e", "2"] = "e"
    """Base of the logarithm in the divergence: e (official code) or 2, with which values above `d_mu` occur."""
    d_mu: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Mean divergence above which the threshold is lowered below the mean, d_mu of the paper."""
    tau: Annotated[float, Range(1.0, 100.0)] = 5.0
    """Divisor of this reduction, (mean - minimum) / tau, tau of the paper."""
    full_trust_below: Annotated[float, Range(0.0, 1.0)] = 0.5
    """Divergence below which a kept label has weight 1; above it the weight is 1 - divergence."""
    temperature: Annotated[float, Range(0.05, 1.0)] = 0.5
    """Temperature T of the sharpening p^(1/T)."""
    alpha: Annotated[float, Range(0.05, 16.0, log=True)] = 4.0
    """Parameter of MixUp's Beta(alpha, alpha)."""
    lambda_u: Annotated[float, Range(0.0, 500.0, search=Range(1.0, 50.0, log=True))] = 5.0
    """Weight of the unlabeled loss. The paper's 30 suits hundreds of epochs from random weights."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.3
    """Fraction of the epochs after the warm-up over which lambda_u rises."""
    lambda_c: Annotated[float, Range(0.0, 10.0)] = 0.025
    """Weight of the contrastive loss; 0 disables it."""
    contrast_head: bool = False
    """Compute the contrastive loss in scope `head` too, where it has no effect on the classifier."""
    contrast_temperature: Annotated[float, Range(0.01, 1.0)] = 0.05
    """Temperature of the contrastive loss."""
    projection_dim: Annotated[int, Range(2, 4096)] = 128
    """Dimension of the projection for the contrastive loss."""
    unlabeled_ratio: Annotated[float, Range(0.1, 4.0)] = 0.5
    """Unlabeled samples per labeled one, times the kept fraction; 1 at heavy noise in the paper."""
    warm_up_head: Annotated[int, Range(0, 1000)] = 5
    """Epochs on every label before the first selection, in scope `head`."""
    warm_up_all: Annotated[int, Range(0, 1000)] = 2
    """Epochs on every label before the first selection, in scope `all`."""
    clean_only: bool = False
    """Train on the kept samples only, next to the contrastive loss, as on Clothing1M and WebVision."""
    probe: Stage = PROBE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: replace(_official(backbone), log_base="2"),
        "official": lambda backbone: _official(backbone),
        "web": lambda backbone: replace(_official(backbone), alpha=0.5, lambda_u=0.0, clean_only=True, warm_up_head=2),
    }

    @property
    def stage(self) -> Stage:
        """Return the stage of the only phase."""
        return self.probe if self.scope == "head" else self.tune

    @property
    def warm_up(self) -> int:
        """Return the number of warm-up epochs, which leaves at least one epoch for the selection."""
        return min(self.warm_up_head if self.scope == "head" else self.warm_up_all, self.stage.epochs - 1)

    @property
    def has_contrast(self) -> bool:
        """Return True if the contrastive loss is used."""
        return self.lambda_c > 0 and (self.scope == "all" or self.contrast_head)

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase with one optimizer per network: warm-up epochs, then epochs that select."""
        name = "probe" if self.scope == "head" else "tune"
        dim = self.projection_dim if self.has_contrast else 0
        views: tuple[View, ...] = ("weak", "strong")
        return (Phase(name, self.scope, self.stage, self.epoch, num_nets=2, views=views, projection_dim=dim),)

    def epoch(self, run: Run) -> None:
        """Warm up, or for each network: score with both, select, and train it."""
        for net, peer in zip(run.nets, run.nets[::-1], strict=True):
            if run.epoch < self.warm_up:
                run.learn(net, warm_up_loss)
            else:
                selection = self.split(run, self.divergence(run))
                peer.eval()
                run.learn(net, self.loss(run, peer), selection, weak=2, strong=2)

    def divergence(self, run: Run) -> Float[Tensor, " N"]:
        """Return the divergence between each given label and the mean prediction of both networks."""

        def sample_divergence(y: Tensor, *logits: Tensor) -> Tensor:
            p = torch.stack([scores.softmax(1) for scores in logits]).mean(0)
            return losses.jsd_to_label(p, y, math.e if self.log_base == "e" else 2.0)

        return run.score(sample_divergence, *run.nets)

    def threshold(self, divergence: Float[Tensor, " N"]) -> float:
        """Return the divergence below which labels count as clean: the mean, or less if the mean is high."""
        mean = float(divergence.mean())
        return mean - (mean - float(divergence.min())) / self.tau if mean > self.d_mu else mean

    def split(self, run: Run, divergence: Float[Tensor, " N"]) -> Selection:
        """Return equally many labels of every class with their weights, and the unlabeled samples."""
        kept = float((divergence < self.threshold(divergence)).double().mean())
        mask = lowest_per_class(divergence, run.y, run.classes, kept)
        weight = torch.where(divergence < self.full_trust_below, torch.ones_like(divergence), 1 - divergence)
        run.ledger.write("p_clean", 1 - divergence)
        ratio = self.unlabeled_ratio / kept if kept else MAX_UNLABELED_RATIO
        ratio = min(max(ratio, MIN_UNLABELED_RATIO), MAX_UNLABELED_RATIO)
        return Selection(mask, weight, unlabeled_mask(mask), ratio)

    def loss(self, run: Run, peer: nn.Module) -> Callable[..., Tensor]:
        """Return the semi-supervised loss of a step with a peer that only predicts, and the contrastive loss."""

        def batch_loss(net: nn.Module, batch: Batch) -> Tensor:
            weight = linear_rampup(self.lambda_u, run.progress, self.warm_up, self.stage.epochs, self.ramp)
            mixed = batch._replace(unlabeled=None) if self.clean_only else batch
            targets = soft_targets(net, peer, mixed, self.temperature)
            loss = semi_supervised_loss(
                net, mixed, targets, slice(2, 4), weight, lambda rows: sample_mixup(rows, self.alpha, run.rng)
            )
            if not self.has_contrast or not batch.unlabeled:
                return loss
            return loss + self.lambda_c * self.contrastive_loss(net, batch.unlabeled)

        return batch_loss

    def contrastive_loss(self, net: nn.Module, unlabeled: Batch) -> Float[Tensor, ""]:
        """Return the contrastive loss of the two strong views of the unlabeled samples."""
        if isinstance(unlabeled.views[2], Tensor):
            z = net(torch.cat(cast(tuple[Tensor, ...], unlabeled.views[2:4]))).embedding
        else:
            z = torch.cat([net(x).embedding for x in unlabeled.views[2:4]])
        first, second = net.project(z).chunk(2)  # type: ignore[operator]
        return losses.nt_xent(first, second, self.contrast_temperature)


def warm_up_loss(net: Network, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the batch."""
    return losses.cross_entropy(net(batch.views[0]).logits, batch.y).mean()


def _official(backbone: str) -> UNICON:
    """Return UNICON's settings of CIFAR with Table 8 of TURN's paper and batches of 64."""
    return UNICON(
        lambda_u=30.0,
        warm_up_all=1,
        probe=replace(paper_probe(backbone), batch_size=64),
        tune=replace(paper_tune(backbone, epochs=5), batch_size=64),
    )
