"""Training of a head on arrays: features, labels and weights, by the same trainer as `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from cleantune.features.cache import Features
from cleantune.methods.nmtune import NMTune
from cleantune.methods.protocol import Batch, EpochMetrics, Method, Phase
from cleantune.pipeline.inputs import HeadFactory
from cleantune.training.batches import FeatureBatches, SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer
from cleantune.utils.device import pick_device

BLOCK_ROWS = 8192
"""Rows of a forward pass through a head."""


@dataclass(frozen=True)
class Regression(NMTune):
    """NMTune on numbers instead of classes: its label loss is the squared error of a single score."""

    def label_loss_name(self) -> str:
        """Return the name of the label loss in metrics."""
        return "squared_error"

    def sample_losses(self, run: Any, logits: Tensor, batch: Batch) -> Tensor:
        """Return the squared error of every sample [B]."""
        return (logits[:, 0] - batch.y).square()


@dataclass(frozen=True)
class LinearRegression(Regression):
    """The squared error of a linear head, the baseline of `Regression`."""

    def phases(self) -> tuple[Phase, ...]:
        """Return the phase `probe`, without an MLP."""
        return (Phase("probe", "head", self.probe, self.epoch),)


def as_regression(method: Method) -> Regression:
    """Return the method for numbers that corresponds to one for classes: with MLP and terms of NMTune, or linear."""
    [phase] = method.phases()
    inner: Any = phase.epoch.__self__  # type: ignore[attr-defined]
    if isinstance(inner, NMTune):
        return Regression(**{f.name: getattr(inner, f.name) for f in fields(inner)})
    return LinearRegression(mse_weight=0.0, cov_weight=0.0, svd_weight=0.0, probe=phase.stage)


@dataclass(frozen=True)
class UniqueSamples:
    """Distinct samples of a set, in an order that does not depend on the order of the set."""

    rows: Int[np.ndarray, " K"]
    """First row of each sample."""
    weight: Float[np.ndarray, " K"]
    """Sum of the weights of equal samples, above zero."""


def merge_duplicates(x: Any, y: Shaped[np.ndarray, " N"], weight: Float[np.ndarray, " N"]) -> UniqueSamples:
    """Merge samples with equal features and labels, and drop samples without weight.

    A sample of weight 3 and three equal samples are thus bitwise the same, and so are all orders of the samples.

    Args:
        x: Features [N, D], compared as float32.
        y: Labels, numbers.
        weight: Weights of the samples, not below zero.
    """
    digests = np.empty((len(y), 2), np.uint64)
    for start in range(0, len(y), BLOCK_ROWS):
        f = np.ascontiguousarray(x[start : start + BLOCK_ROWS], np.float32) + np.float32(0)  # no negative zero
        labels = np.ascontiguousarray(y[start : start + BLOCK_ROWS], np.float64)
        for k, row in enumerate(f):
            digest = blake2b(row.tobytes() + labels[k].tobytes(), digest_size=16).digest()
            digests[start + k] = np.frombuffer(digest, np.uint64)
    _, first, index = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(index.reshape(-1), weight)
    return UniqueSamples(first[total > 0], total[total > 0])


def fit_head(
    method: Method, x: Any, y: Shaped[np.ndarray, " N"], weight: Float[np.ndarray, " N"], num_classes: int,
    seed: int = 0, device: str = "auto",
) -> tuple[nn.Module, list[EpochMetrics]]:  # fmt: skip
    """Train a head by a method.

    Torch's global generator is left as it was.

    Args:
        method: Method of scope `head` with one model.
        x: Features [N, D], in memory or memory-mapped.
        y: Class numbers, or numbers to predict where `num_classes` is 1.
        weight: Weights of the samples, not below zero and not all zero; only proportions count.
        num_classes: Number of scores.
        seed: Seed of initial weights and order.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The head on the CPU in float64, and the metrics of its epochs.
    """
    unique = merge_duplicates(x, y, weight)
    rows, shares = unique.rows, unique.weight
    if len(rows) == 1:  # BatchNorm cannot train on a single sample
        rows, shares = np.repeat(rows, 2), np.repeat(shares, 2)
    batches = FeatureBatches(Features([x], rows, {}))
    labels = torch.as_tensor(y[rows])
    labels = labels.float() if labels.is_floating_point() else labels.long()
    heads = HeadFactory(num_classes, "zeros", seed)
    trainer = Trainer(
        [Model(None, heads(batches.plain, 0))], {"train": SplitData(labels, batches, None)}, num_classes, seed, heads,
        pick_device(device), sample_weight=torch.as_tensor(shares / shares.mean()).float(),
    )  # fmt: skip
    history = list(train(phases(method, 0.0), trainer, lambda trainer: {}, record_probes=False))
    for message in dict.fromkeys(message for row in history for message in row.get("warnings", ())):
        warnings.warn(message, UserWarning, stacklevel=4)
    return trainer.models[0].head.cpu().eval().double(), history


def predict_head(head: nn.Module, x: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield scores [b, C] and embeddings [b, Z] of the rows in blocks, in float64.

    In double precision a sample's prediction does not depend on the other samples of its block.
    """
    with torch.no_grad():
        for start in range(0, len(x), BLOCK_ROWS):
            out = head(torch.from_numpy(np.array(x[start : start + BLOCK_ROWS], np.float64)))
            yield out.logits.numpy(), out.embedding.numpy()
