"""TURN: probe with a robust loss, then cleanse and fine-tune in turns.

Paper: arXiv:2310.17668. Step 1 trains a linear head with GCE on cached features of the frozen backbone. Step 2, each
epoch: cross-entropy of every sample, a two-component mixture per class, keep what is probably clean, class_balance out the
classes, one epoch of full fine-tuning on it. The preset `paper` is that, to the letter of spec section 1.

Differs from the paper, by default (the evidence is in dev/LOG.md):
- who judges: a leave-one-out probe on the features of the moment with a model of the noise (`Run.p_wrong`), instead of
  the loss of the fine-tuned model, which has learned what it is to judge;
- what is trusted: every label that is more probably right than wrong (`select`). Where most labels are right that is
  nearly all of them, where most are wrong it is a clean part; one rule for both. Where wrong labels of a class name
  few others (`flip_concentration_threshold`), the model of the noise keeps to these;
- how classes are evened out: by weights, and by room for trusted labels (`class_balance`), not by leaving samples out;
- what it learns by: cross-entropy and ELR's pull (`elr_lambda`), since what is trusted still holds wrong labels;
- how much: a budget of sample visits spent on what is trusted, so that less trust means more passes, in two
  cleansings instead of four;
- the head that is fine-tuned begins at zero, not at the probe's, whose large scores wreck the first steps;
- what is delivered: the tuned backbone under a last probe on all labels, by ELR's loss with the targets of the tuning;
  it decays its weights strongly, because a head learns wrong labels from tuned features that it does not learn from
  frozen ones;
- EM runs until it converges: after the ten iterations of DivideMix's settings the low component is still too wide;
- every trusted sample is used, rescue for poor classes, the guard of spec 1.5, BatchNorm's statistics frozen, AdamW
  with warm-up and a linear fall at a rate that suits the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cleantune.functional import losses
from cleantune.functional.gmm import Normalize, fit_class_mixtures
from cleantune.functional.selection import (
    balance_classes,
    balance_weights,
    parse_balance,
    rescue_small_classes,
    within_class_quota,
)
from cleantune.methods.elr import ELR, TARGET
from cleantune.methods.nmtune import NMTune
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, LossOutput, Method, Output, Phase, Range, Run, Scope, Selection, Stage

HALF = 0.5
"""A label is trusted where it is more probably right than wrong."""
UNEVEN = 3
"""How many times the smallest class the largest must be for a warning."""
PROBE = Stage(epochs=20, learning_rate=3e-4, batch_size=128, lr_reference_dim=1280, min_steps=1000)
"""Of a linear head."""
TUNE = Stage(epochs=2, learning_rate=3.35e-4, schedule="linear", batch_size=80, warmup=0.1, lr_reference_dim=1280)
"""Of backbone and head; an epoch a cleansing. Batches of 64 gain some .2 points on CIFAR-10 and nothing elsewhere, for
a tenth more time; of 96 and 128 they lose more. A rate that falls linearly needs 3.5 visits a sample where one by the
cosine needs 3.75 (`dev/LOG.md`)."""


@dataclass(frozen=True)
class TURN:
    """Probe with a robust loss, then cleanse and fine-tune in turns: the main job."""

    scope: Scope = "all"
    """What learns after the probe: backbone and head, or, where there is no backbone, the head alone."""
    head: Literal["linear", "mlp", "nmtune"] = "linear"
    """What the probes train: a linear head, or the MLP head of `mlp` or `nmtune`, by their defaults."""
    q: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.9))] = 0.7
    """Exponent of the probe's GCE."""
    select: Literal["posterior", "mixture"] = "posterior"
    """What is trusted: labels more probably right than wrong by a probe and a model of the noise, or those that a
    mixture of losses finds probable, as in the paper. Where the tuned model judges (no `probe_after_tuning`, or scope `head`) it
    is always the mixture."""
    tau: Annotated[float, Range(0.0, 1.0, search=Range(0.1, 0.9))] = 0.3
    """With the mixture: a label is trusted above this probability of being right."""
    balance: str = "all"
    """How the classes are evened out: all, quantile:RHO, floor:K or strict (the paper's minimum)."""
    class_balance: Annotated[float, Range(0.0, 1.0)] = 1.0
    """How far classes of different size count alike, in the losses and in the verdict on labels: 1 wholly, 0 by their
    size. With `select = "posterior"`."""
    flip_concentration_threshold: Annotated[float, Range(0.0, 1.0)] = 0.45
    """How far the wrong labels of a class must name one other (0 all alike, 1 always the same) for the judge to hold
    that each class is mistaken for few others, and that what it finds beside them are its own confusions; 1: never.
    With `select = "posterior"`."""
    probe_after_tuning: bool = True
    """Judge each time by a fresh probe on the features of the moment, and deliver the last one; false: the tuned model
    judges, as in the paper."""
    average: bool = False
    """Judge by the mean of the verdicts so far instead of the last one alone; of use where the tuned model judges."""
    elr_lambda: Annotated[float, Range(0.0, 100.0, search=Range(1.0, 10.0))] = 3.0
    """With probe_after_tuning: weight of ELR's pull towards earlier predictions, in the tuning and in the probes after it."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Share of ELR's old target that stays at each visit."""
    probe_weight_decay: Annotated[float, Range(0.0, 0.5)] = 0.003
    """Share that a step at the full rate takes off the weights in the probes after the first: tuned features let a
    head learn wrong labels that frozen ones do not."""
    budget: Annotated[float, Range(0.1, 100.0)] = 3.5
    """With probe_after_tuning: samples to learn from in all, in multiples of the training split, whatever is trusted."""
    first: Annotated[float, Range(0.05, 0.95)] = 0.3
    """With probe_after_tuning: share of the budget spent after the first cleansing."""
    passes: Annotated[int, Range(1, 20)] = 1
    """Without probe_after_tuning: passes over the trusted samples after each cleansing."""
    normalize: Normalize = "none"
    """Scale of the losses before the mixture: as they are, or 0..1 by class or over all."""
    em_iterations: Annotated[int, Range(1, 10_000, log=True)] = 200
    """Iterations of the mixture's EM at the most."""
    em_tolerance: Annotated[float, Range(0.0, 1.0)] = 1e-6
    """A mixture is done when its mean log-likelihood changes by less; the paper's 0.01 stops long before that."""
    enforce_monotone: bool = True
    """Never call a loss above the high component's mean clean."""
    probe: Stage = PROBE
    """The head on cached features. Left as it is, a head with an MLP takes the stage of `nmtune`."""
    tune: Stage = TUNE
    """Backbone and head on what is trusted; each epoch begins with a cleansing. Left as it is, a head with an MLP that
    learns alone takes the rate of `nmtune`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: TURN(
            select="mixture",
            balance="strict",
            class_balance=0.0,
            probe_after_tuning=False,
            average=False,
            elr_lambda=0.0,
            em_iterations=10,
            em_tolerance=1e-2,
            enforce_monotone=False,
            probe=paper_probe(backbone),
            tune=paper_tune(backbone, epochs=4),
            passes=5 if backbone == "vit_msn" else 1,
        )
    }

    def phases(self) -> tuple[Phase, ...]:
        """Probe, then tune; with probe_after_tuning each cleansing has a phase, and a probe after the last (mixture: each)."""
        mlp = None if self.head == "linear" else self.nmtune().mlp
        stage = self.nmtune().stage if mlp and self.probe == PROBE else self.probe
        probe = Phase("probe", "head", stage, self.probe_epoch, mlp=mlp)
        if not self.probes_judge:
            slow = mlp is not None and self.scope == "head" and self.tune == TUNE
            tune = replace(self.tune, learning_rate=self.nmtune().probe.learning_rate) if slow else self.tune
            return (probe, Phase("tune", self.scope, tune, self.tune_epoch, head="same"))
        once = replace(self.tune, epochs=1)
        again = replace(probe, stage=replace(stage, weight_decay=self.probe_weight_decay / stage.learning_rate))
        out = [probe]
        for k, (start, end) in enumerate(self.spans()):
            head: Literal["new", "own"] = "new" if k == 0 else "own"
            out.append(Phase("tune", "all", once, self.tune_epoch, head, (start, end)))
            if end == 1.0 or self.select == "mixture":
                out.append(again)
        return tuple(out)

    def spans(self) -> list[tuple[float, float]]:
        """The parts of the budget, and of the schedule, that follow each cleansing: the first, then equal parts."""
        rounds = self.tune.epochs
        ends = [1.0] if rounds == 1 else [self.first + (1 - self.first) * k / (rounds - 1) for k in range(rounds)]
        return list(zip([0.0, *ends], ends, strict=False))

    def probe_epoch(self, run: Run) -> None:
        """Step 1: one pass of GCE over every sample; of tuned features each label by how probably it is right."""
        if not (run.backbone_changed and self.probes_judge):
            first: Callable[..., Tensor | LossOutput] = (
                self.probe_loss if self.head == "linear" else self.nmtune().loss_fn(run)
            )
            warning = self.warning(run) if run.epoch == 0 else None
            weight = self.weight(run, torch.ones(len(run.y)))
            run.learn(run.net, weighed(first, weight, warning))
            return
        # With elr_beta 1 ELR's targets stay what the tuning made of them.
        of: Callable[..., Tensor | LossOutput] = (
            replace(self.pull, elr_beta=1.0).loss(run)
            if self.head == "linear"
            else replace(self.nmtune(), loss="elr", elr_beta=1.0).loss_fn(run)
        )
        run.learn(run.net, weighed(of, self.weight(run, run.ledger["p_clean"].float())))

    def nmtune(self) -> NMTune:
        """What the probes learn by where their head has an MLP."""
        method = NMTune(loss="gce", q=self.q, elr_beta=self.elr_beta, elr_lambda=self.elr_lambda)
        if self.head == "nmtune":
            return method
        return replace(method, mse_weight=0.0, cov_weight=0.0, svd_weight=0.0)

    @property
    def pull(self) -> ELR:
        """Cross-entropy with ELR's pull; its targets move in the tuning and stay in the probes."""
        return ELR(elr_beta=self.elr_beta, elr_lambda=self.elr_lambda)

    def tune_epoch(self, run: Run) -> None:
        """Step 2: cleanse, then learn from the trusted."""
        if self.probes_judge and self.select == "posterior":
            wrong = run.p_wrong(self.class_balance, self.flip_concentration_threshold)
            share = within_class_quota(wrong, run.y, run.classes, self.class_balance)
            keep = rescue_small_classes(share & (wrong < HALF), wrong, run.y, run.classes)
            run.ledger.write("p_clean", (1 - wrong) * share)
        else:
            keep = self.cleansed(run)
        kept = balance_classes(keep, run.y, run.classes, parse_balance(self.balance), run.rng)
        selection = Selection(kept, self.weight(run, kept.float()))
        if self.probes_judge and TARGET not in run.ledger:
            run.ledger.begin(TARGET, run.classes)
        loss: Callable[..., Tensor | LossOutput] = self.tune_loss
        if self.probes_judge:
            loss = self.pull.loss(run)
        elif self.scope == "head" and self.head != "linear":
            loss = replace(self.nmtune(), loss="ce").loss_fn(run)
        run.learn(run.net, loss, selection, passes=self.visits(run, selection))

    def weight(self, run: Run, trust: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """What each sample counts: its trust, evened out over the classes."""
        return balance_weights(trust, run.y, run.classes, self.class_balance if self.select == "posterior" else 0.0)

    def warning(self, run: Run) -> str | None:
        """What to say where given classes differ so much in size that it matters whether they count alike."""
        size = torch.bincount(run.y, minlength=run.classes)
        most, least = int(size.max()), int(size[size > 0].min())
        if self.select != "posterior" or self.class_balance == 0 or most <= UNEVEN * least:
            return None
        return (
            f"the largest class has {most:,} given labels, the smallest {least:,}; classes count alike"
            f" (method.class_balance={self.class_balance:g}), so labels of large ones are doubted more: set method.class_balance=0 if they truly"
            " differ so much and plain accuracy is what counts"
        )

    def cleansed(self, run: Run) -> Tensor:
        """Whether the mixture of its class trusts each label [N], with the rescue."""
        loss = self.judged(run)
        mixtures = fit_class_mixtures(
            loss, run.y, run.classes,
            normalize=self.normalize, max_iter=self.em_iterations, tol=self.em_tolerance,
        )  # fmt: skip
        p_clean = mixtures.posterior(loss, run.y, enforce_monotone=self.enforce_monotone)
        if self.average:
            p_clean = run.ledger.average("p_clean", p_clean)
        run.ledger.write("p_clean", p_clean)
        return rescue_small_classes(p_clean > self.tau, loss, run.y, run.classes)

    @property
    def probes_judge(self) -> bool:
        """Whether the last probe judges, and not the model as it is."""
        return self.probe_after_tuning and self.scope == "all"

    def judged(self, run: Run) -> Tensor:
        """Cross-entropy of every sample [N], by the last probe over its later epochs, or by the model as it is."""
        if self.probes_judge:
            assert run.probe_statistics is not None
            return run.probe_statistics.late_loss
        return run.score(lambda y, logits: losses.cross_entropy(logits, y), run.net)

    def visits(self, run: Run, selection: Selection) -> float:
        """Passes over the plan: as many as were asked for, or what this part of the budget pays."""
        if not self.probes_judge:
            return self.passes
        start, end = self.spans()[1 if run.backbone_changed else 0] if self.tune.epochs > 1 else (0.0, 1.0)
        return (end - start) * self.budget * len(run.y) / int(selection.keep.sum())

    def probe_loss(self, net: Callable[..., Output], batch: Batch) -> Tensor | LossOutput:
        """Mean GCE of the batch."""
        return losses.mean(losses.gce(net(batch.views[0]).logits, batch.y, self.q), batch.weight)

    def tune_loss(self, net: Callable[..., Output], batch: Batch) -> Tensor | LossOutput:
        """Mean cross-entropy of the batch."""
        return losses.mean(losses.cross_entropy(net(batch.views[0]).logits, batch.y), batch.weight)


def weighed(
    loss: Callable[..., Tensor | LossOutput], weight: Float[Tensor, " N"], warning: str | None = None
) -> Callable[..., Tensor | LossOutput]:
    """The loss with each sample's weight, in the place of the plan's, and with a warning."""

    def of(net: Callable[..., Output], batch: Batch) -> Tensor | LossOutput:
        value = loss(net, batch._replace(weight=weight[batch.rows].to(batch.weight.device)))
        if warning is None or (isinstance(value, LossOutput) and value.warning is not None):
            return value
        return value._replace(warning=warning) if isinstance(value, LossOutput) else LossOutput(value, {}, warning)

    return of
