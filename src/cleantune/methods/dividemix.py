"""DivideMix: two networks split the labels for each other by a loss mixture and learn semi-supervised with MixMatch.

Paper: Li et al., ICLR 2020 (arXiv:2002.07394), Algorithm 1. After a warm-up on every label, each epoch first computes
the cross-entropy of every sample under both networks, scaled to 0..1, and fits one two-component mixture. Then each
network learns from the split of the other: labels above `tau` are refined, all other labels are dropped and guessed by
both networks.

In scope `head` the views are cached features of augmented samples, and MixUp mixes features, which under a linear head
is the same as mixing logits.

Differs from the paper:
- losses are computed in evaluation mode, as in the official code; a network's own targets come from training mode;
- the ramp of lambda_u is a fraction of the epochs after the warm-up instead of 16 epochs of 300;
- an empty side is filled: at least the `batch_size` most probable labels are kept, as in C2D (arXiv:2103.13646);
- by default losses at or above the mean of the high component are never clean (`enforce_monotone`), EM converges,
  lambda_u is small, and scope `all` has two epochs of warm-up; short runs collapse without them (`dev/LOG.md`). The
  preset `paper` has none of these: 10 EM iterations, CIFAR-100's lambda_u, one epoch of warm-up, the optimizers of
  Table 8 and batches of 64. `official` averages the losses of the last five epochs with a threshold of 0.6, as the
  official code does at 90 % noise. `web` is for Clothing1M and WebVision: alpha 0.5, training on labeled samples only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.functional.gmm import fit_class_mixtures
from cleantune.functional.selection import keep_at_least
from cleantune.methods.mixmatch import (
    Network,
    linear_rampup,
    sample_mixup,
    semi_supervised_loss,
    soft_targets,
    unlabeled_mask,
)
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Phase, Range, Run, Scope, Selection, Stage

PROBE = Stage(epochs=20, learning_rate=3e-4, batch_size=64, lr_reference_dim=1280, min_steps=1000)
TUNE = Stage(epochs=5, learning_rate=3e-4, batch_size=64, warmup=0.1)


@dataclass(frozen=True)
class DivideMix:
    """Two networks that split the labels for each other and learn from doubtful samples without their label."""

    scope: Scope = "head"
    """Trained part: the heads on cached views, or backbones and heads on samples."""
    tau: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.7))] = 0.5
    """Threshold of the clean probability above which a label is kept; 0.6 at 90 % noise in the paper."""
    temperature: Annotated[float, Range(0.05, 1.0)] = 0.5
    """Temperature T of the sharpening p^(1/T)."""
    alpha: Annotated[float, Range(0.05, 16.0, log=True)] = 4.0
    """Parameter of MixUp's Beta(alpha, alpha)."""
    lambda_u: Annotated[float, Range(0.0, 500.0, search=Range(1.0, 50.0, log=True))] = 5.0
    """Weight of the unlabeled loss. The paper's 25 to 150 suit hundreds of epochs from random weights."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.3
    """Fraction of the epochs after the warm-up over which lambda_u rises."""
    warm_up_head: Annotated[int, Range(0, 1000)] = 5
    """Epochs on every label before the first split, in scope `head`."""
    warm_up_all: Annotated[int, Range(0, 1000)] = 2
    """Epochs on every label before the first split, in scope `all`."""
    confidence_penalty: bool = False
    """Penalize confidence in the warm-up, for asymmetric noise and Clothing1M."""
    history: Annotated[int, Range(1, 50)] = 1
    """Number of epochs whose losses are averaged before the split; 5 at 90 % noise in the official code."""
    clean_only: bool = False
    """Train on the kept samples only, as on Clothing1M and WebVision."""
    enforce_monotone: bool = True
    """Give losses at or above the mean of the high component a clean probability of 0."""
    em_iterations: Annotated[int, Range(1, 10_000, log=True)] = 200
    """Maximum number of EM iterations; 10 in the paper."""
    em_tolerance: Annotated[float, Range(0.0, 1.0)] = 1e-6
    """Change of the mean log-likelihood below which EM stops; 0.01 in the paper."""
    probe: Stage = PROBE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: _paper(backbone),
        "official": lambda backbone: replace(_paper(backbone), tau=0.6, history=5),
        "web": lambda backbone: replace(
            _paper(backbone), alpha=0.5, lambda_u=0.0, clean_only=True, confidence_penalty=True, warm_up_head=1
        ),
    }

    @property
    def stage(self) -> Stage:
        """Return the stage of the only phase."""
        return self.probe if self.scope == "head" else self.tune

    @property
    def warm_up(self) -> int:
        """Return the number of warm-up epochs, which leaves at least one epoch for the split."""
        return min(self.warm_up_head if self.scope == "head" else self.warm_up_all, self.stage.epochs - 1)

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase with one optimizer per network: warm-up epochs, then epochs that split."""
        name = "probe" if self.scope == "head" else "tune"
        return (Phase(name, self.scope, self.stage, self.epoch, num_nets=2, views=("weak",)),)

    def epoch(self, run: Run) -> None:
        """Warm up, or score with both networks first and train each with the split of the other."""
        if run.epoch < self.warm_up:
            for net in run.nets:
                run.learn(net, self.warm_up_loss)
            return
        p_clean = [self.clean_probabilities(run, k) for k in range(2)]
        run.ledger.write("p_clean", (p_clean[0] + p_clean[1]) / 2)
        for net, peer, p in zip(run.nets, run.nets[::-1], p_clean[::-1], strict=True):
            peer.eval()
            run.learn(net, self.loss(run, peer), self.split(p), weak=2)

    def clean_probabilities(self, run: Run, k: int) -> Float[Tensor, " N"]:
        """Return the posterior of the low-loss component for each label under network k."""
        loss = run.score(lambda y, logits: losses.cross_entropy(logits, y), run.nets[k])
        column = f"losses_{k}"
        if run.epoch > self.warm_up and column in run.ledger:
            loss = torch.cat([run.ledger[column], loss[:, None]], 1)[:, -self.history :]
        else:
            loss = loss[:, None]
        run.ledger.write(column, loss)
        one_class = torch.zeros_like(run.y)
        mixture = fit_class_mixtures(
            loss.mean(1), one_class, 1, normalize="global", max_iter=self.em_iterations, tol=self.em_tolerance
        )
        p_clean = mixture.posterior(loss.mean(1), one_class, enforce_monotone=self.enforce_monotone)
        run.ledger.write(f"p_clean_{k}", p_clean)
        return p_clean

    def split(self, p_clean: Float[Tensor, " N"]) -> Selection:
        """Return the kept labels, weighted by their clean probability, and the unlabeled samples."""
        mask = keep_at_least(p_clean > self.tau, p_clean, self.stage.batch_size)
        return Selection(mask, p_clean, unlabeled_mask(mask))

    def warm_up_loss(self, net: Network, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, with the negative entropy of the predictions if confidence is penalized."""
        logits = net(batch.views[0]).logits
        loss = losses.cross_entropy(logits, batch.y)
        return (loss + losses.negative_entropy(logits) if self.confidence_penalty else loss).mean()

    def loss(self, run: Run, peer: nn.Module) -> Callable[..., Tensor]:
        """Return the semi-supervised loss of a step with a peer that only predicts."""

        def batch_loss(net: Network, batch: Batch) -> Tensor:
            if self.clean_only:
                batch = batch._replace(unlabeled=None)
            weight = linear_rampup(self.lambda_u, run.progress, self.warm_up, self.stage.epochs, self.ramp)
            targets = soft_targets(net, peer, batch, self.temperature)
            return semi_supervised_loss(
                net, batch, targets, slice(0, 2), weight, lambda rows: sample_mixup(rows, self.alpha, run.rng)
            )

        return batch_loss


def _paper(backbone: str) -> DivideMix:
    """Return DivideMix's settings of CIFAR-100 with Table 8 of TURN's paper and batches of 64."""
    return DivideMix(
        lambda_u=150.0,
        warm_up_all=1,
        enforce_monotone=False,
        em_iterations=10,
        em_tolerance=1e-2,
        probe=replace(paper_probe(backbone), batch_size=64),
        tune=replace(paper_tune(backbone, epochs=5), batch_size=64),
    )
