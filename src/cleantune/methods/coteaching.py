"""Co-teaching: two networks, each of which learns from the samples of a batch with the smallest loss of the other.

Paper: Han et al., NeurIPS 2018 (arXiv:1804.06872), Algorithm 1. In every batch each network picks the fraction R(T) of
the samples with its smallest losses, and the other network learns from them. R(T) = 1 - noise min((T / T_k)^c, 1) falls
over the first T_k epochs from 1 to the fraction of right labels.

Differs from the paper:
- the noise rate, which the paper takes as known, is estimated after every epoch from the predictions made while
  learning, at no extra cost. The estimate is the smaller of the weight of the high component of a mixture over the
  losses and of the fraction of labels that the networks disagree with, because a mixture finds two components on clean
  labels too. `noise_rate` sets it instead, which the preset `paper` needs to equal the paper;
- T_k is a fraction of the phase's epochs instead of 10 epochs of 200; c is 1 as in the paper's experiments;
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

RECORD = "coteaching"
"""Ledger column of the predictions made while learning [N, 4]: loss of both networks, and whether they disagree."""
MAX_NOISE_RATE = 0.95
"""Upper bound of the estimated noise rate."""


@dataclass(frozen=True)
class CoTeaching:
    """Two networks that select the small-loss samples of a batch for each other."""

    scope: Scope = "head"
    """Trained part: the heads on cached features, or backbones and heads on samples."""
    noise_rate: Annotated[float | None, Range(0.0, 1.0)] = None
    """Fraction of wrong labels, tau of the paper; estimated after every epoch if it is not set."""
    ramp: Annotated[float, Range(0.0, 1.0)] = 0.6
    """Fraction of the epochs over which the dropped fraction of a batch grows to the noise rate."""
    exponent: Annotated[float, Range(0.1, 4.0)] = 1.0
    """Exponent of this growth, c of the paper; 1 is linear."""
    probe: Stage = CE_PROBE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: CoTeaching(probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5))
    }

    @property
    def stage(self) -> Stage:
        """Return the stage of the only phase."""
        return self.probe if self.scope == "head" else self.tune

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase: `probe` in scope `head`, `tune` in scope `all`."""
        name = "probe" if self.scope == "head" else "tune"
        return (Phase(name, self.scope, self.stage, self.epoch, num_nets=2),)

    def epoch(self, run: Run) -> None:
        """Train both networks on every sample once."""
        if run.epoch == 0:
            run.ledger.allocate(RECORD, 4)
        rate = self.estimate_noise_rate(run) if run.epoch else self.noise_rate or 0.0
        run.learn(run.nets, self.loss(run, rate))

    def estimate_noise_rate(self, run: Run) -> float:
        """Return the noise rate: as set, or estimated from the previous epoch."""
        loss, disagreement = run.ledger[RECORD][:, :2].mean(1), float(run.ledger[RECORD][:, 2:].mean())
        one_class = torch.zeros_like(run.y)
        mixture = fit_class_mixtures(loss, one_class, 1, normalize="global", max_iter=200, tol=1e-6)
        p_clean = mixture.posterior(loss, one_class)
        run.ledger.write("p_clean", p_clean)
        if self.noise_rate is not None:
            return self.noise_rate
        return min(1 - float(p_clean.mean()), disagreement, MAX_NOISE_RATE)

    def drop_fraction(self, run: Run, rate: float) -> float:
        """Return the fraction of a batch that is dropped at this step, 1 - R(T)."""
        epochs = self.ramp * self.stage.epochs
        return rate * min(run.progress / epochs, 1.0) ** self.exponent if epochs else rate

    def loss(self, run: Run, rate: float) -> Callable[..., Tensor]:
        """Return the sum of the losses of both networks on the samples that the other one picks."""

        def batch_loss(net: Callable[..., Output], peer: Callable[..., Output], batch: Batch) -> Tensor:
            logits = [n(batch.views[0]).logits for n in (net, peer)]
            by_net = [losses.cross_entropy(scores, batch.y) for scores in logits]
            disagrees = [(scores.argmax(1) != batch.y).float() for scores in logits]
            run.ledger.update(RECORD, batch.indices, torch.stack(by_net + disagrees, 1))
            kept = max(1, round((1 - self.drop_fraction(run, rate)) * len(batch.y)))
            easy = [loss.detach().argsort(stable=True)[:kept] for loss in by_net]
            return by_net[0][easy[1]].mean() + by_net[1][easy[0]].mean()

        return batch_loss
