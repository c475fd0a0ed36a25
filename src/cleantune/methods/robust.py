"""Robust fine-tuning, the default method: select labels by a leave-one-out posterior, tune with ELR, probe again.

The method follows TURN (arXiv:2310.17668) in its order: a linear probe with GCE first, then rounds of sample selection
and full fine-tuning. The phases are probe, tune, tune, probe. It differs from TURN in these parts:

- Selection: TURN selects by the loss of the model that is being trained, which has learned the labels it is to score.
  Here each round fits leave-one-out ridge probes on the current features and a class-conditional noise model
  (`label_quality.posterior`), and selects every label that is more probably right than wrong.
- Loss: the selection still contains wrong labels, so fine-tuning minimizes cross-entropy with the regularizer of ELR
  (arXiv:2007.00151).
- Training length: a fixed number of sample visits is spent on the selected samples, so that a small selection is
  repeated more often, in two rounds instead of four.
- Class balance: weights and a quota by class, instead of dropping samples down to the smallest class.
- Head: fine-tuning begins with a zero head, because the large logits of the probe disturb the first steps.
- Probe after tuning: a final probe with ELR's loss on the tuned features uses every label, weighted by the probability
  that it is right. Its weight decay is strong, because a head fits wrong labels on tuned features that it does not fit
  on frozen ones.

Without a backbone (scope `head`) the probe is followed by rounds that select by mixtures of the head's losses, as TURN.
The experiments behind these choices are in `dev/LOG.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cleantune.functional.selection import balance_weights, rescue_small_classes, within_class_quota
from cleantune.methods.elr import ELR, TARGET
from cleantune.methods.nmtune import NMTune
from cleantune.methods.protocol import Batch, LossOutput, Method, Output, Phase, Range, Run, Scope, Selection, Stage
from cleantune.methods.robust_loss import CE, GCE, PROBE
from cleantune.methods.turn import TURN

MAX_P_WRONG = 0.5
"""Probability of a label error below which a label is selected."""
WARNING_CLASS_RATIO = 3
"""Ratio of the largest to the smallest class above which class balancing is reported."""
TUNE = Stage(epochs=2, learning_rate=3.35e-4, schedule="linear", batch_size=80, warmup=0.1, lr_reference_dim=1280)
"""Fine-tuning. Batches of 64 gain 0.2 points on CIFAR-10 and nothing elsewhere, for a tenth more time; batches of 96
and 128 lose more. With linear decay 3.5 visits per sample suffice, with cosine decay 3.75 (`dev/LOG.md`)."""

Loss = Callable[..., Tensor | LossOutput]


@dataclass(frozen=True)
class Robust:
    """Probe, select labels by a leave-one-out posterior, fine-tune with ELR, and probe the tuned features."""

    scope: Scope = "all"
    """Trained part after the first probe: backbone and head, or the head alone."""
    head: Literal["linear", "mlp", "nmtune"] = "linear"
    """Head of the probes: linear, or the MLP head of `mlp` or `nmtune` with their defaults."""
    q: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.9))] = 0.7
    """Exponent of the first probe's GCE."""
    select: Literal["posterior", "all"] = "posterior"
    """Selected labels in scope `all`: those more probably right than wrong, or all."""
    tau: Annotated[float, Range(0.0, 1.0, search=Range(0.1, 0.9))] = 0.3
    """Threshold of the mixture's clean probability in scope `head`."""
    class_balance: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Exponent of the class balance in losses, prior and selection: 1 gives every class the same weight, 0 its size."""
    flip_concentration_threshold: Annotated[float, Range(0.0, 1.0)] = 0.55
    """Concentration of the label flips (0 uniform, 1 a single target per class) above which the noise model keeps only
    the main targets of each class; 1 disables the rule."""
    elr_lambda: Annotated[float, Range(0.0, 100.0, search=Range(1.0, 10.0))] = 3.0
    """Weight of the ELR regularizer in fine-tuning and in the final probe; 0 disables it."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Momentum of the ELR targets."""
    tune_visits: Annotated[float, Range(0.1, 100.0)] = 3.5
    """Sample visits of fine-tuning, in multiples of the size of the training split, whatever is selected."""
    first_round_fraction: Annotated[float, Range(0.05, 0.95)] = 0.3
    """Fraction of the visits in the first round; the other rounds share the rest equally."""
    probe_after_tuning: bool = True
    """Train a final probe on the tuned features; false keeps the head that was fine-tuned."""
    probe_weight_decay: Annotated[float, Range(0.0, 0.5)] = 0.003
    """Weight decay per step of the final probe, times its learning rate relative to the maximum."""
    probe: Stage = PROBE
    """Training of a head on cached features. A head with an MLP takes the stage of `nmtune` unless this is set."""
    tune: Stage = TUNE
    """Fine-tuning; each epoch is a round and begins with a selection. In scope `head` a head with an MLP takes the
    learning rate of `nmtune` unless this is set."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {}

    def phases(self) -> tuple[Phase, ...]:
        """Return the probe, one `tune` phase per round, and the final probe; in scope `head` a single `tune`."""
        mlp = None if self.head == "linear" else self.mlp_method.mlp
        stage = self.mlp_method.stage if mlp and self.probe == PROBE else self.probe
        probe = Phase("probe", "head", stage, self.probe_epoch, mlp=mlp)
        if self.scope == "head":
            takes_default = mlp is not None and self.tune == TUNE
            rate = self.mlp_method.probe.learning_rate if takes_default else self.tune.learning_rate
            return (probe, Phase("tune", "head", replace(self.tune, learning_rate=rate), self.head_epoch, head="same"))
        round_stage = replace(self.tune, epochs=1)
        rounds = [
            Phase(
                "tune",
                "all",
                round_stage,
                partial(self.tune_round, part=end - start),
                "resume" if k else "new",
                (start, end),
            )
            for k, (start, end) in enumerate(self.spans())
        ]
        if not self.probe_after_tuning:
            return (probe, *rounds)
        final_stage = replace(stage, weight_decay=self.probe_weight_decay / stage.learning_rate)
        return (probe, *rounds, replace(probe, stage=final_stage, epoch=self.final_probe_epoch))

    def spans(self) -> list[tuple[float, float]]:
        """Return the part of the visits, and of the schedule, of each round."""
        rounds, first = self.tune.epochs, self.first_round_fraction
        ends = [1.0] if rounds == 1 else [first + (1 - first) * k / (rounds - 1) for k in range(rounds)]
        return list(zip([0.0, *ends], ends, strict=False))

    def probe_epoch(self, run: Run) -> None:
        """Train the head for one epoch of GCE on every sample, weighted by class."""
        loss: Loss = GCE(q=self.q).loss if self.head == "linear" else self.mlp_method.loss_fn(run)
        warning = self.warning(run) if run.epoch == 0 else None
        run.learn(run.net, weighted_loss(loss, self.class_weights(run, torch.ones(len(run.y))), warning))

    def tune_round(self, run: Run, part: float) -> None:
        """Select labels, then train backbone and head on them.

        Args:
            run: Run to train in.
            part: Fraction of `tune_visits` that this round spends.
        """
        mask = self.select_labels(run)
        if TARGET not in run.ledger:
            run.ledger.allocate(TARGET, run.classes)
        passes = part * self.tune_visits * len(run.y) / int(mask.sum())
        run.learn(run.net, self.elr.loss(run), self.selection(run, mask), passes=passes)

    def final_probe_epoch(self, run: Run) -> None:
        """Train a new head for one epoch of ELR's loss on every sample, weighted by the probability that it is right.

        The targets of ELR keep the values that fine-tuning has left (beta 1).
        """
        loss: Loss = (
            replace(self.elr, elr_beta=1.0).loss(run)
            if self.head == "linear"
            else replace(self.mlp_method, loss="elr", elr_beta=1.0).loss_fn(run)
        )
        run.learn(run.net, weighted_loss(loss, self.class_weights(run, run.ledger["p_clean"].float())))

    def head_epoch(self, run: Run) -> None:
        """Select labels by mixtures of the head's losses, then train the head on them; scope `head` only."""
        loss: Loss = CE().loss if self.head == "linear" else replace(self.mlp_method, loss="ce").loss_fn(run)
        run.learn(run.net, loss, self.selection(run, TURN(tau=self.tau).select(run)))

    def select_labels(self, run: Run) -> Bool[Tensor, " N"]:
        """Return the mask of the selected labels and record their clean probabilities."""
        if self.select == "all":
            run.ledger.write("p_clean", torch.ones(len(run.y)))
            return torch.ones(len(run.y), dtype=torch.bool)
        p_wrong = run.p_wrong(self.class_balance, self.flip_concentration_threshold)
        within = within_class_quota(p_wrong, run.y, run.classes, self.class_balance)
        run.ledger.write("p_clean", (1 - p_wrong) * within)
        return rescue_small_classes(within & (p_wrong < MAX_P_WRONG), p_wrong, run.y, run.classes)

    def selection(self, run: Run, mask: Bool[Tensor, " N"]) -> Selection:
        """Return the selected samples with their class weights."""
        return Selection(mask, self.class_weights(run, mask.float()))

    def class_weights(self, run: Run, weight: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return sample weights, balanced over the classes."""
        return balance_weights(weight, run.y, run.classes, self.class_balance)

    def warning(self, run: Run) -> str | None:
        """Return a warning if class balancing matters because the given classes differ much in size."""
        size = torch.bincount(run.y, minlength=run.classes)
        largest, smallest = int(size.max()), int(size[size > 0].min())
        if self.class_balance == 0 or largest <= WARNING_CLASS_RATIO * smallest:
            return None
        return (
            f"the largest class has {largest:,} given labels, the smallest {smallest:,}; all classes get the same"
            f" weight (method.class_balance={self.class_balance:g}), so labels of large classes are doubted more: set"
            " method.class_balance=0 if the classes truly differ so much and plain accuracy is what counts"
        )

    @property
    def elr(self) -> ELR:
        """Return ELR with this method's settings."""
        return ELR(elr_beta=self.elr_beta, elr_lambda=self.elr_lambda)

    @property
    def mlp_method(self) -> NMTune:
        """Return the method whose head and loss the probes take if their head has an MLP."""
        method = NMTune(loss="gce", q=self.q, elr_beta=self.elr_beta, elr_lambda=self.elr_lambda)
        if self.head == "nmtune":
            return method
        return replace(method, mse_weight=0.0, cov_weight=0.0, svd_weight=0.0)


def weighted_loss(loss: Loss, weight: Float[Tensor, " N"], warning: str | None = None) -> Loss:
    """Return a loss that takes its sample weights from a tensor instead of the batch.

    Args:
        loss: Loss of a network and a batch.
        weight: Weight of every sample of the training split.
        warning: Message that the loss passes on unless it has one of its own.
    """

    def of(net: Callable[..., Output], batch: Batch) -> Tensor | LossOutput:
        value = loss(net, batch._replace(weight=weight[batch.indices].to(batch.weight.device)))
        if warning is None or (isinstance(value, LossOutput) and value.warning is not None):
            return value
        return value._replace(warning=warning) if isinstance(value, LossOutput) else LossOutput(value, {}, warning)

    return of
