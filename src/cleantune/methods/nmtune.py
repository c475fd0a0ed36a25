"""NMTune: an MLP on frozen features with three regularizers of their spectrum; `mlp` is the MLP without them.

Papers: Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks, ICLR 2024
(arXiv:2309.17002), and its extension (arXiv:2403.06869). The loss of a batch is

    label loss + w_mse L_MSE(F, Z) + w_cov L_COV(Z) + w_svd L_SVD(Z)

with the features F and the output Z of the MLP, over the rows of the batch; with two views both are rows. The preset
`paper` has the settings of the text, `official` those of the official code; they differ. In scope `all` there is no MLP
and no L_MSE; the other two terms act on the features of the backbone (arXiv:2403.06869).

Differs from the paper:
- the label loss may be GCE or ELR, against wrong labels downstream in addition to those of the pre-training;
- by default the official architecture takes features standardized by dimension, because L_COV grows with the fourth
  power of their scale; one setting then fits every backbone. Training is shorter and slower, the classifier starts at
  zero, and L_MSE is strong (10) and L_COV weak: with the settings of the presets an MLP on a sentence encoder memorizes
  the training labels and loses to a linear probe;
- dropout of a fifth of the input dimensions of the MLP, so that it does not rely on a few of them, which another domain
  may lack;
- small data sets are repeated until there are 400 steps, and shorter features raise the learning rate; no preset does;
- views are the weak views of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
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
"""Short and slow training: an MLP memorizes what a linear probe cannot."""
GCE_LEARNING_RATE = 3e-4
"""Learning rate with GCE, whose gradient is p_y^q times that of cross-entropy and weak next to the regularizers."""
MLP_HEAD = MLPHeadConfig(classifier="zeros", standardize=True, dropout=0.2)
TEXT_BACKBONES = ("bert", "roberta", "mpnet", "modernbert")
"""Backbones whose presets have the paper's settings for language."""
LabelLoss = Literal["ce", "gce", "elr"]


def paper_stage(backbone: str) -> Stage:
    """Return the paper's schedule: cosine over 30 epochs, or for language linear over 10 (arXiv:2309.17002)."""
    schedule: Literal["linear", "cosine"]
    epochs, schedule = (10, "linear") if backbone in TEXT_BACKBONES else (30, "cosine")
    return Stage(epochs, 1e-3, None, 1e-4, "adamw", schedule, batch_size=64)


@dataclass(frozen=True)
class NMTune:
    """MLP on frozen features with three spectrum regularizers, against label noise in the pre-training."""

    scope: Scope = "head"
    """Trained part: MLP and classifier on cached features, or backbone and head on samples, without an MLP."""
    loss: LabelLoss = "ce"
    """Label loss: ce, or against wrong labels gce or elr."""
    q: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Exponent of GCE."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Momentum of the ELR targets."""
    elr_lambda: Annotated[float, Range(0.0, 100.0)] = 3.0
    """Weight of the ELR regularizer."""
    mse_weight: Annotated[float, Range(0.0, 100.0)] = 10.0
    """Weight of L_MSE, the distance between features and MLP output; scope `head` only."""
    cov_weight: Annotated[float, Range(0.0, 100.0)] = 0.001
    """Weight of L_COV, the covariance between dimensions, the main term."""
    svd_weight: Annotated[float, Range(0.0, 100.0)] = 0.01
    """Weight of L_SVD, minus the share of the largest singular values."""
    mse_reduction: Literal["row_mean", "element_mean"] = "row_mean"
    """Reduction of L_MSE: mean over rows (paper) or over all elements (official code), which is a D-th of it."""
    top_k: Annotated[int, Range(1, 4096)] = 1
    """Number of singular values in L_SVD."""
    svd_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of their shares: sum (paper, with one) or mean (official code, with five)."""
    view_pairing: Literal["same", "across"] = "same"
    """Pairs of L_MSE with two views: features and MLP output of the same view, or of the first and the second view
    (official code)."""
    views: Annotated[int, Range(1, 2)] = 1
    """Augmented views of a sample per step; on cached features two need images or texts, whose views are cached."""
    mlp: MLPHeadConfig = MLP_HEAD
    """MLP before the classifier."""
    probe: Stage = STAGE
    """Training in scope `head`. With GCE the learning rate is 3e-4 unless this is set."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: NMTune(
            mse_weight=0.01, cov_weight=0.01, svd_weight=0.01,
            mlp=MLPHeadConfig(norm="none", residual=False), views=1, probe=paper_stage(backbone)
        ),
        "official": lambda backbone: NMTune(
            mse_weight=1.0, cov_weight=0.04, svd_weight=0.001, mse_reduction="element_mean",
            top_k=5, svd_reduction="mean", view_pairing="across", views=2, mlp=MLPHeadConfig(),
            probe=paper_stage(backbone),
        ),
    }  # fmt: skip

    @property
    def stage(self) -> Stage:
        """Return the stage of scope `head`."""
        if self.loss == "gce" and self.probe == STAGE:
            return replace(STAGE, learning_rate=GCE_LEARNING_RATE)
        return self.probe

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase: `probe` in scope `head`, `tune` in scope `all`."""
        phase = single_phase(self.scope, self.stage, self.tune, self.epoch)
        if self.scope == "all":
            return (phase,)
        return (replace(phase, mlp=self.mlp, views=("weak",) if self.views > 1 else ()),)

    def epoch(self, run: Run) -> None:
        """Train on every sample once."""
        if run.epoch == 0 and self.loss == "elr":
            run.ledger.allocate(TARGET, run.classes)
        run.learn(run.net, self.loss_fn(run), weak=self.views)

    def loss_fn(self, run: Run) -> Callable[..., LossOutput]:
        """Return the loss of a batch with its components."""

        def batch_loss(net: Callable[..., Output], batch: Batch) -> LossOutput:
            outputs = forward_views(net, batch.views)
            name = self.label_loss_name()
            components = {name: self.label_loss(run, outputs, batch)} | self.regularizers(outputs)
            weights = {"consistency": self.mse_weight, "covariance": self.cov_weight, "dominance": self.svd_weight}
            total = components[name] + sum(weights[term] * components[term] for term in weights if term in components)
            warning = self.warning(components) if run.progress == 0.0 else None
            return LossOutput(total, components, warning)

        return batch_loss

    def label_loss_name(self) -> str:
        """Return the name of the label loss in the metrics."""
        return self.loss

    def label_loss(self, run: Run, outputs: list[Output], batch: Batch) -> Float[Tensor, ""]:
        """Return the label loss, averaged over the views."""
        by_view = [losses.weighted_mean(self.sample_losses(run, o.logits, batch), batch.weight) for o in outputs]
        return torch.stack(by_view).mean()

    def sample_losses(self, run: Run, logits: Float[Tensor, "B C"], batch: Batch) -> Float[Tensor, " B"]:
        """Return the label loss of each sample in one view."""
        if self.loss == "gce":
            return losses.gce(logits, batch.y, self.q)
        if self.loss == "elr":
            return ELR(elr_beta=self.elr_beta, elr_lambda=self.elr_lambda).sample_losses(run, logits, batch)
        return losses.cross_entropy(logits, batch.y)

    def regularizers(self, outputs: list[Output]) -> dict[str, Tensor]:
        """Return the terms with a weight above zero over the rows of all views; none for a single row."""
        uses_features = self.scope == "all" and not self.mlp.standardize
        z = torch.cat([o.features if uses_features else o.embedding for o in outputs])
        terms: dict[str, Tensor] = {}
        if len(z) < 2:
            return terms
        if self.mse_weight and self.scope == "head":
            if self.view_pairing == "across" and len(outputs) > 1:
                terms["consistency"] = losses.consistency(outputs[0].features, outputs[1].embedding, self.mse_reduction)
            else:
                f = torch.cat([o.features for o in outputs])
                terms["consistency"] = losses.consistency(f, z, self.mse_reduction)
        if self.cov_weight:
            terms["covariance"] = losses.covariance(z)
        if self.svd_weight:
            terms["dominance"] = losses.dominant_singular_value(z, self.top_k, self.svd_reduction)
        return terms

    def warning(self, components: dict[str, Tensor]) -> str | None:
        """Return a warning if the covariance term is larger than the label loss at the first step."""
        if "covariance" not in components:
            return None
        term = self.cov_weight * float(components["covariance"].detach())
        label_loss = float(components[self.label_loss_name()].detach())
        if term <= abs(label_loss):
            return None
        remedy = "" if self.mlp.standardize else "set method.mlp.standardize=true, or "
        return (
            f"the covariance term is {term:.3g} at the first step and the label loss {label_loss:.3g}, so that it"
            f" dominates training; {remedy}lower method.cov_weight ({self.cov_weight:g})"
        )


def forward_views(net: Callable[..., Output], views: tuple[Inputs, ...]) -> list[Output]:
    """Return the outputs of a network for each view.

    Cached views pass through the network together; views that are the same tensor are computed once.
    """
    tensors = [x for x in views if isinstance(x, Tensor)]
    if len(tensors) < len(views):
        return [net(x) for x in views]
    if all(x is tensors[0] for x in tensors):
        return [net(tensors[0])]
    output = net(torch.cat(tensors))
    return [Output(*chunks) for chunks in zip(*(value.chunk(len(views)) for value in output), strict=True)]


@dataclass(frozen=True)
class MLP:
    """Head of NMTune with the label loss alone, the baseline of its three regularizers."""

    scope: Scope = "head"
    """Trained part: MLP and classifier on cached features, or backbone and head on samples, without an MLP."""
    loss: LabelLoss = "ce"
    """Label loss: ce, or against wrong labels gce or elr."""
    q: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Exponent of GCE."""
    elr_beta: Annotated[float, Range(0.0, 1.0)] = 0.7
    """Momentum of the ELR targets."""
    elr_lambda: Annotated[float, Range(0.0, 100.0)] = 3.0
    """Weight of the ELR regularizer."""
    views: Annotated[int, Range(1, 2)] = 1
    """Augmented views of a sample per step; on cached features two need images or texts, whose views are cached."""
    mlp: MLPHeadConfig = MLP_HEAD
    """MLP before the classifier."""
    probe: Stage = STAGE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: MLP(mlp=MLPHeadConfig(norm="none", residual=False), probe=paper_stage(backbone)),
        "official": lambda backbone: MLP(views=2, mlp=MLPHeadConfig(), probe=paper_stage(backbone)),
    }

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of NMTune with all weights at zero."""
        return NMTune(
            self.scope, self.loss, self.q, self.elr_beta, self.elr_lambda, 0.0, 0.0, 0.0,
            views=self.views, mlp=self.mlp, probe=self.probe, tune=self.tune,
        ).phases()  # fmt: skip
