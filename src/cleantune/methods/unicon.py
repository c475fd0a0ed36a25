"""UNICON: class-balanced selection by divergence, semi-supervised learning, and a contrastive loss on what is left.

Paper: Karim et al., CVPR 2022 (arXiv:2203.14542); spec 4.5. As DivideMix, with other verbs: before each net learns,
both nets together judge anew (the Jensen-Shannon divergence of their mean prediction and the given label), equally
many of every class are kept, targets come from weak views and MixUp from strong ones, and the samples that are not
kept pull their two strong views together.

In scope `head` views are cached features, and the contrastive loss is off: with a frozen backbone it moves the
projection alone and cannot reach the classifier (spec 4.6). `contrast_head` switches it on, as a pure cost.

Differs from the paper / from the authors' code:
- the divergence is in nats, so that the branch above `limit` (0.7) never runs, as in the authors' code; `log_base` 2
  lets it act (the preset `paper`);
- a class that has fewer samples than its share gives what it has, instead of copies of sample 0 (code);
- both nets judge in evaluation mode, in the code the one that has just learned is in training mode;
- samples of the rest beside a labeled one: 1 / (2R), R the share kept (code), kept within 1 to 8 (spec 7);
- the ramp of lambda_u is a share of the epochs; lambda_u and warm-up are smaller and longer by default, as for
  DivideMix; the presets have the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.functional.selection import lowest_per_class
from cleantune.methods.dividemix import PROBE, TUNE
from cleantune.methods.mixmatch import Network, linear_rampup, sample_mixup, semi_loss, targets, unlabeled_mask
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Phase, Range, Run, Scope, Selection, Stage, View

REST = (1.0, 8.0)
"""Samples of the rest beside a labeled one, at the least and at the most."""


@dataclass(frozen=True)
class UNICON:
    """Two nets, equally many labels of every class by divergence, and contrastive learning from the rest."""

    scope: Scope = "head"
    """What learns: the heads on cached views, or backbones and heads on samples."""
    log_base: Literal["e", "2"] = "e"
    """Of the divergence: e as in the authors' code, or 2, with which the branch above `limit` can run."""
    limit: Annotated[float, Range(0.0, 1.0)] = 0.7
    """A mean divergence above this lowers the threshold below the mean, the paper's d_mu."""
    strictness: Annotated[float, Range(1.0, 100.0)] = 5.0
    """How far: by (mean - least) / strictness, the paper's tau."""
    certain: Annotated[float, Range(0.0, 1.0)] = 0.5
    """A kept label whose divergence is below this is trusted fully, any other by 1 - divergence."""
    temperature: Annotated[float, Range(0.05, 1.0)] = 0.5
    """Sharpens targets: p^(1/T)."""
    alpha: Annotated[float, Range(0.05, 16.0, log=True)] = 4.0
    """MixUp draws from Beta(alpha, alpha)."""
    lambda_u: Annotated[float, Range(0.0, 500.0, search=Range(1.0, 50.0, log=True))] = 5.0
    """Weight of the samples without a label. The paper's 30 suits hundreds of epochs from random weights."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.3
    """Share of the epochs after the warm-up over which lambda_u rises."""
    lambda_c: Annotated[float, Range(0.0, 10.0)] = 0.025
    """Weight of the contrastive loss; 0 switches it off."""
    contrast_head: bool = False
    """The contrastive loss in scope `head` too, where it cannot help."""
    contrast_temperature: Annotated[float, Range(0.01, 1.0)] = 0.05
    """Divides the similarities of the contrastive loss."""
    projection_dim: Annotated[int, Range(2, 4096)] = 128
    """Length of the projection that the contrastive loss sees."""
    rest_factor: Annotated[float, Range(0.1, 4.0)] = 0.5
    """Samples of the rest beside a labeled one, times the share kept; the authors advise 1 at heavy noise."""
    warm_up_head: Annotated[int, Range(0, 1000)] = 5
    """Epochs on every label before the first selection, in scope `head`."""
    warm_up_all: Annotated[int, Range(0, 1000)] = 2
    """The same in scope `all`."""
    web: bool = False
    """Mix and learn the kept samples alone, beside the contrastive loss, as on Clothing1M and WebVision."""
    probe: Stage = PROBE
    """The only phase of scope `head`."""
    tune: Stage = TUNE
    """The only phase of scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: replace(_authors(backbone), log_base="2"),
        "official": lambda backbone: _authors(backbone),
        "web": lambda backbone: replace(_authors(backbone), alpha=0.5, lambda_u=0.0, web=True, warm_up_head=2),
    }

    @property
    def stage(self) -> Stage:
        """Of the only phase."""
        return self.probe if self.scope == "head" else self.tune

    @property
    def warm_up(self) -> int:
        """Epochs on every label; one at the least is left for learning from a selection."""
        return min(self.warm_up_head if self.scope == "head" else self.warm_up_all, self.stage.epochs - 1)

    @property
    def contrast(self) -> bool:
        """Whether the contrastive loss is on."""
        return self.lambda_c > 0 and (self.scope == "all" or self.contrast_head)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, with one optimizer a net: warm-up, then epochs that select."""
        name, length = "probe" if self.scope == "head" else "tune", self.projection_dim if self.contrast else 0
        views: tuple[View, ...] = ("weak", "strong")
        return (Phase(name, self.scope, self.stage, self.epoch, num_nets=2, views=views, projection_dim=length),)

    def epoch(self, run: Run) -> None:
        """Warm up, or: judge, learn, judge anew, and the other net learns."""
        for net, peer in zip(run.nets, run.nets[::-1], strict=True):
            if run.epoch < self.warm_up:
                run.learn(net, warm_up_loss)
            else:
                selection = self.selection(run, self.judged(run))
                peer.eval()
                run.learn(net, self.semi_loss(run, peer), selection, weak=2, strong=2)

    def judged(self, run: Run) -> Tensor:
        """Divergence [N] of each given label and what both nets think together."""

        def divergence(y: Tensor, *logits: Tensor) -> Tensor:
            p = torch.stack([scores.softmax(1) for scores in logits]).mean(0)
            return losses.jsd_to_label(p, y, math.e if self.log_base == "e" else 2.0)

        return run.score(divergence, *run.nets)

    def threshold(self, divergence: Tensor) -> float:
        """Labels below it would be kept if classes did not count: the mean, or less where the mean is high."""
        mean = float(divergence.mean())
        return mean - (mean - float(divergence.min())) / self.strictness if mean > self.limit else mean

    def selection(self, run: Run, divergence: Tensor) -> Selection:
        """Equally many labels of every class with how far they are trusted, and the rest."""
        share = float((divergence < self.threshold(divergence)).double().mean())
        keep = lowest_per_class(divergence, run.y, run.classes, share)
        trust = torch.where(divergence < self.certain, torch.ones_like(divergence), 1 - divergence)
        run.ledger.write("p_clean", 1 - divergence)
        beside = min(max(self.rest_factor / share, REST[0]), REST[1]) if share else REST[1]
        return Selection(keep, trust, unlabeled_mask(keep), beside)

    def semi_loss(self, run: Run, peer: nn.Module) -> Callable[..., Tensor]:
        """The loss of a step, beside a peer that only guesses."""

        def of(net: nn.Module, batch: Batch) -> Tensor:
            weight = linear_rampup(self.lambda_u, run.progress, self.warm_up, self.stage.epochs, self.ramp)
            alone = batch._replace(unlabeled=None) if self.web else batch
            target = targets(net, peer, alone, self.temperature)
            loss = semi_loss(
                net, alone, target, slice(2, 4), weight, lambda rows: sample_mixup(rows, self.alpha, run.rng)
            )
            return (
                loss + self.lambda_c * self.contrasted(net, batch.unlabeled)
                if self.contrast and batch.unlabeled
                else loss
            )

        return of

    def contrasted(self, net: nn.Module, unlabeled: Batch) -> Tensor:
        """The contrastive loss of the two strong views of the rest."""
        if isinstance(unlabeled.views[2], Tensor):
            z = net(torch.cat(cast(tuple[Tensor, ...], unlabeled.views[2:4]))).embedding
        else:
            z = torch.cat([net(x).embedding for x in unlabeled.views[2:4]])
        one, two = net.project(z).chunk(2)  # type: ignore[operator]
        return losses.nt_xent(one, two, self.contrast_temperature)


def warm_up_loss(net: Network, batch: Batch) -> Tensor:
    """Mean cross-entropy of the batch."""
    return losses.cross_entropy(net(batch.views[0]).logits, batch.y).mean()


def _authors(backbone: str) -> UNICON:
    """Table 8 of TURN's paper with batch 64, and UNICON's settings of CIFAR."""
    return UNICON(
        lambda_u=30.0,
        warm_up_all=1,
        probe=replace(paper_probe(backbone), batch_size=64),
        tune=replace(paper_tune(backbone, epochs=5), batch_size=64),
    )
