"""Co-teaching: two nets, each of which learns from the samples of a batch that its peer finds easy.

Paper: Han et al., NeurIPS 2018 (arXiv:1804.06872). In every batch each net picks the share R(T) of the samples that it
has the smallest loss for, and its peer learns from these; R(T) = 1 - noise min((T / T_k)^c, 1) falls over the first T_k
epochs from 1 to the share of right labels.

Differs from the paper:
- the noise rate, which the paper takes as known, is estimated after every epoch from what the nets thought while they
  learned, which costs no look: the smaller of the high component of a mixture over the losses and of the share of
  labels that they disagree with (on clean labels a mixture finds two components all the same). `noise_rate` states it
  instead, which the preset `paper` needs to be the paper's;
- T_k is a share of the phase's epochs instead of 10 epochs of 200; c is 1 as in the paper's experiments;
- stages suit pre-trained backbones; the preset `paper` has TURN's Table 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from cleantune.functional import losses
from cleantune.functional.gmm import fit_class_mixtures
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Output, Phase, Range, Run, Scope, Stage
from cleantune.methods.robust_loss import CE_PROBE, TUNE

SEEN = "seen"
"""The ledger's column of what was seen while learning [N, 4]: both nets' losses, and whether they disagree."""
MOST = 0.95
"""An estimated noise rate is not believed above this."""


@dataclass(frozen=True)
class CoTeaching:
    """Two nets that teach each other: each learns from what its peer finds easy."""

    scope: Scope = "head"
    """What learns: the heads on cached features, or backbones and heads on samples."""
    noise_rate: Annotated[float | None, Range(0.0, 1.0)] = None
    """Share of wrong labels, the paper's tau; none: estimated from the losses of the epoch before."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.6
    """Share of the epochs over which the share of samples that are left out grows to the noise rate."""
    exponent: Annotated[float, Range(0.1, 4.0)] = 1.0
    """How it grows: the paper's c, 1 is linear."""
    probe: Stage = CE_PROBE
    """The only phase of scope `head`."""
    tune: Stage = TUNE
    """The only phase of scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: CoTeaching(probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5))
    }

    def phases(self) -> tuple[Phase, ...]:
        """One phase: `probe` in scope `head`, `tune` in scope `all`."""
        name, stage = ("probe", self.probe) if self.scope == "head" else ("tune", self.tune)
        return (Phase(name, self.scope, stage, self.epoch, num_nets=2),)

    def epoch(self, run: Run) -> None:
        """One pass over every sample, both nets at once."""
        if run.epoch == 0:
            run.ledger.allocate(SEEN, 4)
        rate = self.estimated(run) if run.epoch else self.noise_rate or 0.0
        run.learn(run.nets, self.loss(run, rate))

    def estimated(self, run: Run) -> float:
        """The noise rate: as stated, or by the losses and predictions of the epoch before."""
        seen, wrong = run.ledger[SEEN][:, :2].mean(1), float(run.ledger[SEEN][:, 2:].mean())
        mixture = fit_class_mixtures(seen, torch.zeros_like(run.y), 1, normalize="global", max_iter=200, tol=1e-6)
        p_clean = mixture.posterior(seen, torch.zeros_like(run.y))
        run.ledger.write("p_clean", p_clean)
        return min(1 - float(p_clean.mean()), wrong, MOST) if self.noise_rate is None else self.noise_rate

    def left_out(self, run: Run, rate: float) -> float:
        """The share of a batch that is left out now: 1 - R(T)."""
        epochs = self.ramp * (self.probe if self.scope == "head" else self.tune).epochs
        return rate * min(run.progress / epochs, 1.0) ** self.exponent if epochs else rate

    def loss(self, run: Run, rate: float) -> Callable[..., Tensor]:
        """The sum of both nets' losses on what their peers pick."""

        def of(net: Callable[..., Output], peer: Callable[..., Output], batch: Batch) -> Tensor:
            logits = [n(batch.views[0]).logits for n in (net, peer)]
            each = [losses.cross_entropy(scores, batch.y) for scores in logits]
            disagrees = [(scores.argmax(1) != batch.y).float() for scores in logits]
            run.ledger.update(SEEN, batch.indices, torch.stack(each + disagrees, 1))
            kept = max(1, round((1 - self.left_out(run, rate)) * len(batch.y)))
            easy = [loss.detach().argsort(stable=True)[:kept] for loss in each]
            return each[0][easy[1]].mean() + each[1][easy[0]].mean()

        return of
