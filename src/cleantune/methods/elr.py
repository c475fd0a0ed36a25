"""ELR: cross-entropy, and a pull towards what the net itself predicted earlier, before it learned wrong labels.

Paper: Liu et al., Early-Learning Regularization, NeurIPS 2020 (arXiv:2007.00151); spec 4.3. ELR+ (two nets, MixUp) is
not here. Every sample has a target t, the moving average of the net's probabilities, updated before the loss:
t <- elr_beta t + (1 - elr_beta) p / sum(p), loss = CE + lambda log(1 - <t, p>), and no gradient flows through t.

Differs from the paper:
- probabilities are clamped to 1e-4 and 1 - 1e-4, as in the authors' code (`clamp`; 0 switches it off, as the paper);
- two options for short runs, both off: `corrected` divides t by its mass 1 - elr_beta^k, `probe_first` begins with a probe
  whose probabilities are the first targets;
- learning rates suit AdamW and the backbone; the preset `paper` has those of TURN's Table 8, and CIFAR-100's elr_beta and
  lambda; `official` has the same with the clamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from cleantune.functional import losses
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Output, Phase, Range, Run, Scope, Stage
from cleantune.methods.robust_loss import CE_PROBE, TUNE, single_phase

TARGET = "elr_target"
"""The ledger's column of targets [N, C]."""


@dataclass(frozen=True)
class ELR:
    """Cross-entropy with early-learning regularization: a label that earlier predictions contradict pulls less."""

    scope: Scope = "head"
    """What learns: the head on cached features, or backbone and head on samples."""
    elr_beta: Annotated[float, Range(0.0, 1.0, search=Range(0.5, 0.95))] = 0.7
    """Share of the old target that stays at each visit: 0.7, or 0.9 for many classes and asymmetric noise."""
    elr_lambda: Annotated[float, Range(0.0, 100.0, search=Range(1.0, 10.0))] = 3.0
    """Weight of the regularizer, the paper's lambda: 1 to 7, and 0 is cross-entropy."""
    clamp: Annotated[float, Range(0.0, 0.01)] = 1e-4
    """Probabilities are kept this far from 0 and 1, as in the authors' code; 0: not."""
    corrected: bool = False
    """Divide targets by their mass, which after k visits is 1 - elr_beta^k: they count in full from the first epoch."""
    probe_first: bool = False
    """In scope `all`: probe first, and begin with its probabilities as targets instead of zeros."""
    probe: Stage = CE_PROBE
    """The head on cached features."""
    tune: Stage = TUNE
    """Backbone and head."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: ELR(
            elr_beta=0.9, elr_lambda=7.0, clamp=0.0, probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5)
        ),
        "official": lambda backbone: ELR(
            elr_beta=0.9, elr_lambda=7.0, probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5)
        ),
    }

    def phases(self) -> tuple[Phase, ...]:
        """`probe` in scope `head`, `tune` in scope `all`, where `probe_first` puts a probe before it."""
        last = single_phase(self.scope, self.probe, self.tune, self.epoch)
        if self.scope == "head" or not self.probe_first:
            return (last,)
        return (Phase("probe", "head", self.probe, self.epoch), last)

    def epoch(self, run: Run) -> None:
        """One pass over every sample."""
        if run.epoch == 0:
            run.ledger.allocate(TARGET, run.classes)
            if run.probe_statistics is not None:
                run.ledger.write(TARGET, run.probe_statistics.late_probabilities)
        run.learn(run.net, self.loss(run))

    def loss(self, run: Run) -> Callable[..., Tensor]:
        """The loss of a batch, which updates the targets of its samples first."""

        def of(net: Callable[..., Output], batch: Batch) -> Tensor:
            return losses.weighted_mean(self.each(run, net(batch.views[0]).logits, batch), batch.weight)

        return of

    def each(self, run: Run, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of every sample [B], after the targets of the samples were moved."""
        p = torch.softmax(logits.float(), dim=1).clamp(self.clamp, 1 - self.clamp)
        target = self.target(run, batch.indices, p.detach())
        return losses.cross_entropy(logits, batch.y) + self.elr_lambda * losses.elr_regularizer(p, target)

    def target(self, run: Run, rows: Tensor, p: Tensor) -> Tensor:
        """The targets [B, C] that count for these rows of the ledger, moved there towards p [B, C] where they move."""
        target = run.ledger[TARGET][rows].to(p)
        if self.elr_beta < 1:
            target = self.moved(target, p)
            run.ledger.update(TARGET, rows, target)
        return target / target.sum(1, keepdim=True).clamp(min=losses.TINY) if self.corrected else target

    def moved(self, target: Tensor, p: Tensor) -> Tensor:
        """Targets [B, C] after a visit that predicts p [B, C]."""
        return self.elr_beta * target + (1 - self.elr_beta) * p / p.sum(1, keepdim=True)
