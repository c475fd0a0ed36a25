"""ELR: cross-entropy with a regularizer towards the network's own earlier predictions.

Paper: Liu et al., Early-Learning Regularization, NeurIPS 2020 (arXiv:2007.00151). ELR+ (two networks, MixUp) is not
implemented. Every sample has a target t, the moving average of the network's probabilities, which is updated before the
loss: t <- beta t + (1 - beta) p / sum(p). The loss is CE + lambda log(1 - <t, p>) (equation 6), and no
gradient flows through t.

Differs from the paper:
- probabilities are clamped to 1e-4 and 1 - 1e-4, as in the official code (`clamp`; 0 switches it off);
- two options for short runs, both off by default: `corrected` divides t by its mass 1 - beta^k after k visits,
  `probe_first` starts with a probe whose probabilities are the first targets;
- learning rates suit AdamW and the backbone. The preset `paper` has those of TURN's Table 8 and CIFAR-100's beta and
  lambda; `official` has the same with the clamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional import losses
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Output, Phase, Range, Run, Scope, Stage
from cleantune.methods.robust_loss import CE_PROBE, TUNE, single_phase

TARGET = "elr_target"
"""Ledger column of the targets [N, C]."""


@dataclass(frozen=True)
class ELR:
    """Cross-entropy with early-learning regularization, which reduces the gradient of labels contradicted earlier."""

    scope: Scope = "head"
    """Trained part: the head on cached features, or backbone and head on samples."""
    elr_beta: Annotated[float, Range(0.0, 1.0, search=Range(0.5, 0.95))] = 0.7
    """Momentum of the targets, beta of the paper: 0.7, or 0.9 for many classes and asymmetric noise."""
    elr_lambda: Annotated[float, Range(0.0, 100.0, search=Range(1.0, 10.0))] = 3.0
    """Weight of the regularizer, lambda of the paper: 1 to 7; 0 is cross-entropy."""
    clamp: Annotated[float, Range(0.0, 0.01)] = 1e-4
    """Distance of the probabilities from 0 and 1, as in the official code; 0 disables it."""
    corrected: bool = False
    """Divide targets by their mass, which is 1 - beta^k after k visits, so that they have full weight at once."""
    probe_first: bool = False
    """In scope `all`: probe first, and start with its probabilities as targets instead of zeros."""
    probe: Stage = CE_PROBE
    """Training in scope `head`, and of the first probe."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: ELR(
            elr_beta=0.9, elr_lambda=7.0, clamp=0.0, probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5)
        ),
        "official": lambda backbone: ELR(
            elr_beta=0.9, elr_lambda=7.0, probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5)
        ),
    }

    def phases(self) -> tuple[Phase, ...]:
        """Return `probe` in scope `head`, `tune` in scope `all`, with a probe before it if `probe_first` is set."""
        last = single_phase(self.scope, self.probe, self.tune, self.epoch)
        if self.scope == "head" or not self.probe_first:
            return (last,)
        return (Phase("probe", "head", self.probe, self.epoch), last)

    def epoch(self, run: Run) -> None:
        """Train on every sample once."""
        if run.epoch == 0:
            run.ledger.allocate(TARGET, run.classes)
            if run.probe_statistics is not None:
                run.ledger.write(TARGET, run.probe_statistics.late_probabilities)
        run.learn(run.net, self.loss(run))

    def loss(self, run: Run) -> Callable[..., Tensor]:
        """Return the loss of a batch, which updates the targets of its samples first."""

        def batch_loss(net: Callable[..., Output], batch: Batch) -> Tensor:
            return losses.weighted_mean(self.sample_losses(run, net(batch.views[0]).logits, batch), batch.weight)

        return batch_loss

    def sample_losses(self, run: Run, logits: Float[Tensor, "B C"], batch: Batch) -> Float[Tensor, " B"]:
        """Update the targets of the samples, then return the loss of each sample."""
        p = torch.softmax(logits.float(), dim=1).clamp(self.clamp, 1 - self.clamp)
        target = self.updated_targets(run, batch.indices, p.detach())
        return losses.cross_entropy(logits, batch.y) + self.elr_lambda * losses.elr_regularizer(p, target)

    def updated_targets(self, run: Run, rows: Int[Tensor, " B"], p: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Move the targets of some samples towards their probabilities and return them.

        Args:
            run: Run whose ledger has the targets.
            rows: Rows of the ledger.
            p: Probabilities.
        """
        target = run.ledger[TARGET][rows].to(p)
        if self.elr_beta < 1:
            target = self.elr_beta * target + (1 - self.elr_beta) * p / p.sum(1, keepdim=True)
            run.ledger.update(TARGET, rows, target)
        return target / target.sum(1, keepdim=True).clamp(min=losses.TINY) if self.corrected else target
