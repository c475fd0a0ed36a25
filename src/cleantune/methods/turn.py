"""TURN: probe with a robust loss, then cleanse and fine-tune in turns.

Paper: arXiv:2310.17668. Step 1 trains a linear head with GCE on cached features of the frozen backbone. Step 2, each
epoch: cross-entropy of every sample, a two-component mixture per class, keep what is probably clean, even out the
classes, one epoch of full fine-tuning on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from cleantune import losses
from cleantune.methods.table8 import paper_probe, paper_tune
from cleantune.mixture import Normalise, class_mixtures
from cleantune.records import Batch, Interval, Method, Phase, Plan, Run, Scope, Stage
from cleantune.selection import balanced, parse_balance, rescue


@dataclass(frozen=True)
class TURN:
    """Probe with a robust loss, then cleanse and fine-tune in turns: the main job."""

    scope: Scope = "all"
    """What learns after the probe: backbone and head, or, where there is no backbone, the head alone."""
    q: Annotated[float, Interval(0.0, 1.0)] = 0.7
    """Exponent of the probe's GCE."""
    tau: Annotated[float, Interval(0.0, 1.0)] = 0.6
    """A label is trusted above this probability of being right."""
    balance: str = "quantile:0.10"
    """How the classes are evened out: strict (the paper's minimum), quantile:RHO, floor:K or all."""
    average: bool = True
    """Judge by the mean of the verdicts so far, the probe's included, instead of the last one alone."""
    normalise: Normalise = "none"
    """Scale of the losses before the mixture: as they are, or 0..1 by class or over all."""
    monotone: bool = True
    """Never call a loss above the high component's mean clean."""
    probe: Stage = Stage(epochs=20)
    """The head on cached features."""
    tune: Stage = Stage(epochs=4, batch_size=64)
    """Backbone and head on what is trusted; each epoch begins with a cleansing."""
    passes: Annotated[int, Interval(1, 20)] = 1
    """Passes over the trusted samples after each cleansing."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: TURN(
            balance="strict",
            average=False,
            monotone=False,
            probe=paper_probe(backbone),
            tune=paper_tune(backbone, epochs=4),
            passes=5 if backbone == "vit_msn" else 1,
        )
    }

    def phases(self) -> tuple[Phase, ...]:
        """Probe, then tune."""
        return (
            Phase("probe", "head", self.probe, self.probe_epoch),
            Phase("tune", self.scope, self.tune, self.tune_epoch),
        )

    def probe_epoch(self, run: Run) -> None:
        """Step 1: one pass of GCE over every sample."""
        run.learn(run.net, self.probe_loss)

    def tune_epoch(self, run: Run) -> None:
        """Step 2: cleanse, then learn from the trusted."""
        log_p = run.score(lambda y, logits: logits.log_softmax(1), run.net)
        run.ledger.average("p", log_p.exp())
        loss = -log_p.gather(1, run.y[:, None])[:, 0]
        if "first_loss" not in run.ledger:
            run.ledger.write("first_loss", loss)
        mixtures = class_mixtures(loss, run.y, run.classes, normalise=self.normalise)
        verdict = mixtures.posterior(loss, run.y, monotone=self.monotone)
        p_clean = run.ledger.average("p_clean", verdict) if self.average else verdict
        run.ledger.write("p_clean", p_clean)
        keep = rescue(p_clean > self.tau, loss, run.y, run.classes)
        plan = Plan.of(balanced(keep, run.y, run.classes, parse_balance(self.balance), run.rng))
        run.learn(run.net, self.tune_loss, plan, passes=self.passes)

    def probe_loss(self, net: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Mean GCE of the batch."""
        return losses.mean(losses.gce(net(batch.views[0]).logits, batch.y, self.q), batch.weight)

    def tune_loss(self, net: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return losses.mean(losses.cross_entropy(net(batch.views[0]).logits, batch.y), batch.weight)
