"""DivideMix: two nets split the labels for each other by a mixture of losses, then learn semi-supervised by MixMatch.

Paper: Li et al., ICLR 2020 (arXiv:2002.07394); spec 4.4. After a warm-up on every label, each epoch: both nets judge
first (cross-entropy of every sample, scaled to 0..1 over all, one two-component mixture), then each net learns by the
other's verdict: labels above `tau` are refined, all other labels are dropped and guessed by both nets.

In scope `head` the views are features of augmented samples from a cache, and MixUp mixes features, which under a
linear head is the same as mixing scores (spec 4.6).

Differs from the paper:
- a net is judged by its predictions in evaluation mode, as in the authors' code; targets of its own come from the
  net as it learns;
- the ramp of lambda_u is a share of the epochs after the warm-up instead of 16 epochs of 300 (spec 4.4, short runs);
- a side that would be empty is filled: the `batch_size` most probable labels are kept at the least (C2D's guard);
- by default the guard of spec 1.5 (`enforce_monotone`), EM to convergence, a small lambda_u and two epochs of warm-up in scope
  `all`, without which short runs collapse (dev/LOG.md); the preset `paper` has neither guard nor convergence, one
  epoch of warm-up, CIFAR-100's lambda_u, Table 8's optimizers and batch 64. `official` averages
  the losses of the last five epochs, as the code does at 90 % noise, with a threshold of 0.6; `web` is what paper and
  code do on Clothing1M and WebVision: alpha 0.5, only labeled samples learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.functional.gmm import fit_class_mixtures
from cleantune.functional.selection import keep_at_least
from cleantune.methods.mixmatch import Network, linear_rampup, sample_mixup, semi_loss, targets, unlabeled_mask
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Phase, Range, Run, Scope, Selection, Stage

PROBE = Stage(epochs=20, learning_rate=3e-4, batch_size=64, lr_reference_dim=1280, min_steps=1000)
TUNE = Stage(epochs=5, learning_rate=3e-4, batch_size=64, warmup=0.1)


@dataclass(frozen=True)
class DivideMix:
    """Two nets that split the labels for each other and learn from the doubtful samples without their label."""

    scope: Scope = "head"
    """What learns: the heads on cached views, or backbones and heads on samples."""
    tau: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.7))] = 0.5
    """A label is kept above this probability of being right; the authors take 0.6 at 90 % noise."""
    temperature: Annotated[float, Range(0.05, 1.0)] = 0.5
    """Sharpens targets: p^(1/T)."""
    alpha: Annotated[float, Range(0.05, 16.0, log=True)] = 4.0
    """MixUp draws from Beta(alpha, alpha)."""
    lambda_u: Annotated[float, Range(0.0, 500.0, search=Range(1.0, 50.0, log=True))] = 5.0
    """Weight of the samples without a label. The paper's 25 to 150 suit hundreds of epochs from random weights."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.3
    """Share of the epochs after the warm-up over which lambda_u rises."""
    warm_up_head: Annotated[int, Range(0, 1000)] = 5
    """Epochs on every label before the first split, in scope `head`."""
    warm_up_all: Annotated[int, Range(0, 1000)] = 2
    """The same in scope `all`."""
    confidence_penalty: bool = False
    """Hold back confidence in the warm-up, for asymmetric noise and Clothing1M."""
    history: Annotated[int, Range(1, 50)] = 1
    """Epochs whose losses are averaged before the split; the authors' code takes 5 at 90 % noise."""
    web: bool = False
    """Mix and learn the kept samples alone, as on Clothing1M and WebVision."""
    enforce_monotone: bool = True
    """Never call a loss above the high component's mean clean."""
    em_iterations: Annotated[int, Range(1, 10_000, log=True)] = 200
    """Iterations of the mixture's EM at the most; the paper's 10."""
    em_tolerance: Annotated[float, Range(0.0, 1.0)] = 1e-6
    """The mixture is done when its mean log-likelihood changes by less; the paper's 0.01."""
    probe: Stage = PROBE
    """The only phase of scope `head`."""
    tune: Stage = TUNE
    """The only phase of scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: _paper(backbone),
        "official": lambda backbone: replace(_paper(backbone), tau=0.6, history=5),
        "web": lambda backbone: replace(
            _paper(backbone), alpha=0.5, lambda_u=0.0, web=True, confidence_penalty=True, warm_up_head=1
        ),
    }

    @property
    def stage(self) -> Stage:
        """Of the only phase."""
        return self.probe if self.scope == "head" else self.tune

    @property
    def warm_up(self) -> int:
        """Epochs on every label; one at the least is left for learning from the split."""
        return min(self.warm_up_head if self.scope == "head" else self.warm_up_all, self.stage.epochs - 1)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, with one optimizer a net: warm-up, then epochs that split."""
        name = "probe" if self.scope == "head" else "tune"
        return (Phase(name, self.scope, self.stage, self.epoch, num_nets=2, views=("weak",)),)

    def epoch(self, run: Run) -> None:
        """Warm up, or: both verdicts first, then each net learns by the other's."""
        if run.epoch < self.warm_up:
            for net in run.nets:
                run.learn(net, self.warm_up_loss)
            return
        clean = [self.judged(run, k) for k in range(2)]
        run.ledger.write("p_clean", (clean[0] + clean[1]) / 2)
        for net, peer, p_clean in zip(run.nets, run.nets[::-1], clean[::-1], strict=True):
            peer.eval()
            run.learn(net, self.semi_loss(run, peer), self.selection(p_clean), weak=2)

    def judged(self, run: Run, k: int) -> Tensor:
        """Probability [N] that each label is right, by net k: the posterior of the low component over all losses."""
        loss = run.score(lambda y, logits: losses.cross_entropy(logits, y), run.nets[k])
        column = f"losses_{k}"
        if run.epoch > self.warm_up and column in run.ledger:
            loss = torch.cat([run.ledger[column], loss[:, None]], 1)[:, -self.history :]
        else:
            loss = loss[:, None]
        run.ledger.write(column, loss)
        together = torch.zeros_like(run.y)
        mixture = fit_class_mixtures(
            loss.mean(1), together, 1, normalize="global", max_iter=self.em_iterations, tol=self.em_tolerance
        )
        p_clean = mixture.posterior(loss.mean(1), together, enforce_monotone=self.enforce_monotone)
        run.ledger.write(f"p_clean_{k}", p_clean)
        return p_clean

    def selection(self, p_clean: Tensor) -> Selection:
        """Kept labels with their probability of being right as weight, and the rest."""
        keep = keep_at_least(p_clean > self.tau, p_clean, self.stage.batch_size)
        return Selection(keep, p_clean, unlabeled_mask(keep))

    def warm_up_loss(self, net: Network, batch: Batch) -> Tensor:
        """Mean cross-entropy, and where asked for the negative entropy of the predictions."""
        logits = net(batch.views[0]).logits
        loss = losses.cross_entropy(logits, batch.y)
        return (loss + losses.negative_entropy(logits) if self.confidence_penalty else loss).mean()

    def semi_loss(self, run: Run, peer: nn.Module) -> Callable[..., Tensor]:
        """The loss of a step, beside a peer that only guesses."""

        def of(net: Network, batch: Batch) -> Tensor:
            if self.web:
                batch = batch._replace(unlabeled=None)
            weight = linear_rampup(self.lambda_u, run.progress, self.warm_up, self.stage.epochs, self.ramp)
            target = targets(net, peer, batch, self.temperature)
            return semi_loss(
                net, batch, target, slice(0, 2), weight, lambda rows: sample_mixup(rows, self.alpha, run.rng)
            )

        return of


def _paper(backbone: str) -> DivideMix:
    """Table 8 of TURN's paper with batch 64, and DivideMix's settings of CIFAR-100."""
    return DivideMix(
        lambda_u=150.0,
        warm_up_all=1,
        enforce_monotone=False,
        em_iterations=10,
        em_tolerance=1e-2,
        probe=replace(paper_probe(backbone), batch_size=64),
        tune=replace(paper_tune(backbone, epochs=5), batch_size=64),
    )
