"""NMTune: an MLP reshapes frozen features while three terms keep their spectrum in order; `mlp` is the MLP alone.

Papers: Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks, ICLR 2024
(arXiv:2309.17002), and its extension (arXiv:2403.06869); nmtune spec 3. The loss of a batch is

    label loss + w1 consistency(F, Z) + w2 covariance(Z) + w3 dominant_singular_value(Z)

with F the features and Z what the MLP makes of them, over the rows of the mini-batch, both views of a sample among them
where there are two. The preset `paper` is the text, `official` what its authors ran; they differ (spec 3.4).
In scope `all` there is no MLP and no consistency: the last two terms act on the features of the backbone that learns
(arXiv:2403.06869; spec 6.3).

Differs from the paper:
- the label loss may be GCE or ELR, for wrong labels downstream beside those of the pre-training;
- the default takes the authors' architecture on features standardized by dimension, because the covariance term grows
  with the fourth power of their scale: one setting then fits every backbone. It learns shorter and slower, begins with
  a classifier at zero and holds the reshaped features closer to the given ones (weight 10) with less covariance: with
  the presets' settings an MLP on a sentence encoder learns the training labels by heart and loses to a linear probe;
- a fifth of the dimensions is hidden from the MLP in each step, so that it leans on no few of them, which another
  domain may lack;
- few samples are passed over until there are 400 steps, and shorter features raise the rate; no preset does that;
- views are augmented by this project's weak view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from cleantune.functional import losses
from cleantune.methods.elr import ELR, TARGET
from cleantune.methods.protocol import (
    Batch,
    Inputs,
    LossOutput,
    Method,
    MLPHeadConfig,
    Output,
    Phase,
    Range,
    Run,
    Scope,
    Stage,
)
from cleantune.methods.robust_loss import TUNE, single_phase

STAGE = Stage(epochs=6, learning_rate=1e-4, batch_size=128, lr_reference_dim=1280, min_steps=400)
"""Short and slow: an MLP learns by heart what a linear probe cannot."""
MLP_HEAD = MLPHeadConfig(classifier="zeros", standardize=True, dropout=0.2)
TEXT = ("bert", "roberta", "mpnet", "modernbert")
"""Backbones whose presets have the paper's settings for language."""
LabelLoss = Literal["ce", "gce", "elr"]


def paper_stage(backbone: str) -> Stage:
    """The paper's settings of MLP tuning and NMTune: cosine over 30 epochs, or for language linear over 10 (spec 4)."""
    epochs, schedule = (10, "linear") if backbone in TEXT else (30, "cosine")
    return Stage(epochs, 1e-3, None, 1e-4, "adamw", schedule, batch_size=64)  # type: ignore[arg-type]


@dataclass(frozen=True)
class NMTune:
    """Reshape frozen features by an MLP that keeps their spectrum in order: against noise in the pre-training."""

    scope: Scope = "head"
    """What learns: MLP and classifier on cached features, or backbone and head on samples, without an MLP."""
    loss: LabelLoss = "ce"
    """What the labels are learned by: ce, or against wrong labels gce or elr."""
    q: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Exponent of GCE."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """ELR's share of the old target that stays at each visit."""
    elr_lambda: Annotated[float, Range(0.0, 100.0)] = 3.0
    """Weight of ELR's regularizer, its lambda."""
    mse_weight: Annotated[float, Range(0.0, 100.0)] = 10.0
    """Weight of the distance between features and reshaped features, L_MSE; scope `head` only."""
    cov_weight: Annotated[float, Range(0.0, 100.0)] = 0.001
    """Weight of the covariance of different dimensions, L_COV, the main term."""
    svd_weight: Annotated[float, Range(0.0, 100.0)] = 0.01
    """Weight of the share of the largest singular values, L_SVD, which is raised."""
    consistency: Literal["row_mean", "element_mean"] = "row_mean"
    """L_MSE is averaged over rows (paper) or over all numbers (authors' code), which is a D-th of it."""
    top_k: Annotated[int, Range(1, 4096)] = 1
    """How many singular values are raised."""
    dominance: Literal["sum", "mean"] = "sum"
    """Their shares are summed (paper, with one) or averaged (authors' code, with five)."""
    view_pairing: Literal["same", "across"] = "same"
    """With two views: features are compared with the reshaped ones of the same view, or the first's with the second's
    (authors' code)."""
    views: Annotated[int, Range(1, 2)] = 1
    """Augmented views of a sample a step; on cached features two need images or texts, whose views are cached."""
    mlp: MLPHeadConfig = MLP_HEAD
    """The MLP."""
    probe: Stage = STAGE
    """The only phase of scope `head`. Left as it is, GCE learns at three times the rate."""
    tune: Stage = TUNE
    """The only phase of scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: NMTune(
            mse_weight=0.01, cov_weight=0.01, svd_weight=0.01,
            mlp=MLPHeadConfig(norm="none", residual=False), views=1, probe=paper_stage(backbone)
        ),
        "official": lambda backbone: NMTune(
            mse_weight=1.0, cov_weight=0.04, svd_weight=0.001, consistency="element_mean",
            top_k=5, dominance="mean", view_pairing="across", views=2, mlp=MLPHeadConfig(), probe=paper_stage(backbone),
        ),
    }  # fmt: skip

    @property
    def stage(self) -> Stage:
        """Of scope `head`. GCE's gradient is p_y^q of cross-entropy's: beside the other terms it would be weak."""
        fast = self.loss == "gce" and self.probe == STAGE
        return replace(STAGE, learning_rate=3e-4) if fast else self.probe

    def phases(self) -> tuple[Phase, ...]:
        """`probe` in scope `head`, `tune` in scope `all`."""
        phase = single_phase(self.scope, self.stage, self.tune, self.epoch)
        if self.scope == "all":
            return (phase,)
        return (replace(phase, mlp=self.mlp, views=("weak",) if self.views > 1 else ()),)

    def epoch(self, run: Run) -> None:
        """One pass over every sample."""
        self.begin(run)
        run.learn(run.net, self.loss_fn(run), weak=self.views)

    def begin(self, run: Run) -> None:
        """What the label loss needs before its first epoch."""
        if run.epoch == 0 and self.loss == "elr":
            run.ledger.allocate(TARGET, run.classes)

    def loss_fn(self, run: Run) -> Callable[..., LossOutput]:
        """The loss of a batch, with its components."""

        def of(net: Callable[..., Output], batch: Batch) -> LossOutput:
            outputs = forward_views(net, batch.views)
            name = self.label_loss()
            parts = {name: self.labels(run, outputs, batch)} | self.regularizers(outputs)
            weights = {
                "consistency": self.mse_weight,
                "covariance": self.cov_weight,
                "dominance": self.svd_weight,
            }
            total = parts[name] + sum(weights[term] * parts[term] for term in weights if term in parts)
            warning = self.warning(parts) if run.progress == 0.0 else None
            return LossOutput(total, parts, warning)

        return of

    def label_loss(self) -> str:
        """The label loss's name in rows."""
        return self.loss

    def labels(self, run: Run, outputs: list[Output], batch: Batch) -> Tensor:
        """The label loss, the mean over the views."""
        return torch.stack([losses.weighted_mean(self.each(run, o.logits, batch), batch.weight) for o in outputs]).mean()

    def each(self, run: Run, logits: Tensor, batch: Batch) -> Tensor:
        """The label loss of every sample of one view [B]."""
        if self.loss == "gce":
            return losses.gce(logits, batch.y, self.q)
        if self.loss == "elr":
            return ELR(elr_beta=self.elr_beta, elr_lambda=self.elr_lambda).each(run, logits, batch)
        return losses.cross_entropy(logits, batch.y)

    def regularizers(self, outputs: list[Output]) -> dict[str, Tensor]:
        """The terms that have a weight, over the rows of all views; none of a single row."""
        own = self.scope == "all" and not self.mlp.standardize
        z = torch.cat([o.features if own else o.embedding for o in outputs])
        parts: dict[str, Tensor] = {}
        if len(z) < 2:
            return parts
        if self.mse_weight and self.scope == "head":
            f = torch.cat([o.features for o in outputs])
            if self.view_pairing == "across" and len(outputs) > 1:
                parts["consistency"] = losses.consistency(outputs[0].features, outputs[1].embedding, self.consistency)
            else:
                parts["consistency"] = losses.consistency(f, z, self.consistency)
        if self.cov_weight:
            parts["covariance"] = losses.covariance(z)
        if self.svd_weight:
            parts["dominance"] = losses.dominant_singular_value(z, self.top_k, self.dominance)
        return parts

    def warning(self, parts: dict[str, Tensor]) -> str | None:
        """What to say where the covariance term is larger than the label loss at the first step."""
        if "covariance" not in parts:
            return None
        term, label_loss = (
            self.cov_weight * float(parts["covariance"].detach()),
            float(parts[self.label_loss()].detach()),
        )
        if term <= abs(label_loss):
            return None
        remedy = "" if self.mlp.standardize else "set method.mlp.standardize=true, or "
        return (
            f"the covariance term is {term:.3g} at the first step and the label loss {label_loss:.3g}:"
            f" it rules what is learned; {remedy}lower method.cov_weight ({self.cov_weight:g})"
        )


def forward_views(net: Callable[..., Output], views: tuple[Inputs, ...]) -> list[Output]:
    """What a net says of each view; views that are the same features count once, cached ones pass together."""
    tensors = [x for x in views if isinstance(x, Tensor)]
    if len(tensors) < len(views):
        return [net(x) for x in views]
    if all(x is tensors[0] for x in tensors):
        return [net(tensors[0])]
    both = net(torch.cat(tensors))
    return [Output(*part) for part in zip(*(value.chunk(len(views)) for value in both), strict=True)]


@dataclass(frozen=True)
class MLP:
    """The module of NMTune with the label loss alone: what its three terms are compared with."""

    scope: Scope = "head"
    """What learns: MLP and classifier on cached features, or backbone and head on samples, without an MLP."""
    loss: LabelLoss = "ce"
    """What the labels are learned by: ce, or against wrong labels gce or elr."""
    q: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Exponent of GCE."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """ELR's share of the old target that stays at each visit."""
    elr_lambda: Annotated[float, Range(0.0, 100.0)] = 3.0
    """Weight of ELR's regularizer, its lambda."""
    views: Annotated[int, Range(1, 2)] = 1
    """Augmented views of a sample a step; on cached features two need images or texts, whose views are cached."""
    mlp: MLPHeadConfig = MLP_HEAD
    """The MLP."""
    probe: Stage = STAGE
    """The only phase of scope `head`."""
    tune: Stage = TUNE
    """The only phase of scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: MLP(mlp=MLPHeadConfig(norm="none", residual=False), probe=paper_stage(backbone)),
        "official": lambda backbone: MLP(views=2, mlp=MLPHeadConfig(), probe=paper_stage(backbone)),
    }

    def phases(self) -> tuple[Phase, ...]:
        """Those of NMTune with all weights at zero."""
        return NMTune(
            self.scope, self.loss, self.q, self.elr_beta, self.elr_lambda, 0.0, 0.0, 0.0,
            views=self.views, mlp=self.mlp, probe=self.probe, tune=self.tune,
        ).phases()  # fmt: skip
