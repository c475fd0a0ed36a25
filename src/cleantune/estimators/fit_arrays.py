"""A method on arrays: features, labels and weights in, a trained head out, through the project's one loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from cleantune.features.cache import Features
from cleantune.methods.nmtune import NMTune
from cleantune.methods.protocol import Batch, EpochMetrics, Method, Phase, Selection
from cleantune.pipeline.inputs import HeadFactory
from cleantune.training.batches import FeatureBatches
from cleantune.training.checkpoint import SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.models import Net
from cleantune.training.trainer import Trainer
from cleantune.utils.device import pick_device

BLOCK_ROWS = 8192
"""Rows that pass through a head at a time."""


@dataclass(frozen=True)
class Regression(NMTune):
    """NMTune on numbers instead of classes: the label loss is the squared error of the only score (spec 8, no. 20)."""

    def label_loss(self) -> str:
        """The name in rows."""
        return "squared_error"

    def each(self, run: Any, logits: Tensor, batch: Batch) -> Tensor:
        """Squared error of every sample [B]."""
        return (logits[:, 0] - batch.y).square()


@dataclass(frozen=True)
class LinearRegression(Regression):
    """The squared error of a linear head: what `Regression` is compared with."""

    def phases(self) -> tuple[Phase, ...]:
        """`probe`, without an MLP."""
        return (Phase("probe", "head", self.probe, self.epoch),)


def regression(method: Method) -> Regression:
    """A method for numbers in the place of one for classes: with the MLP and terms of NMTune, or linear."""
    [phase] = method.phases()
    learns: Any = phase.epoch.__self__  # type: ignore[attr-defined]
    if isinstance(learns, NMTune):
        return Regression(**{f.name: getattr(learns, f.name) for f in fields(learns)})
    return LinearRegression(mse_weight=0.0, cov_weight=0.0, svd_weight=0.0, probe=phase.stage)


@dataclass(frozen=True)
class UniqueSamples:
    """The different samples of a set, in an order that does not depend on theirs."""

    rows: Int[np.ndarray, " K"]
    """The first row of each."""
    weight: Float[np.ndarray, " K"]
    """The sums of their weights, above zero."""


class WeightedLoop(Trainer):
    """A loop in which every plan's weights are times those of the samples."""

    def __init__(self, *args: Any, weight: Float[Tensor, " N"], **more: Any) -> None:
        super().__init__(*args, **more)
        self.weight = weight

    def learn(self, nets: Any, loss: Any, selection: Selection | None = None, **how: Any) -> None:
        """As the loop's."""
        selection = selection or Selection.of(torch.ones(len(self.y), dtype=torch.bool))
        super().learn(nets, loss, replace(selection, weight=selection.weight * self.weight), **how)


def distinct(x: Any, y: Shaped[np.ndarray, " N"], weight: Float[np.ndarray, " N"]) -> UniqueSamples:
    """Equal samples with equal labels as one with the sum of their weights; samples of weight zero are left out.

    A sample of weight 3 and three equal samples are then the same, to the bit, and so are all orders of the samples.

    Args:
        x: Features [N, D]; compared as float32.
        y: Labels, numbers.
        weight: Not below zero.
    """
    marks = np.empty((len(y), 2), np.uint64)
    for start in range(0, len(y), BLOCK_ROWS):
        part = np.ascontiguousarray(x[start : start + BLOCK_ROWS], np.float32) + np.float32(0)  # no negative zero
        labels = np.ascontiguousarray(y[start : start + BLOCK_ROWS], np.float64)
        for k, row in enumerate(part):
            mark = blake2b(row.tobytes() + labels[k].tobytes(), digest_size=16).digest()
            marks[start + k] = np.frombuffer(mark, np.uint64)
    _, first, number = np.unique(marks, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(number.reshape(-1), weight)
    return UniqueSamples(first[total > 0], total[total > 0])


def trained(
    method: Method, x: Any, y: Shaped[np.ndarray, " N"], weight: Float[np.ndarray, " N"], classes: int,
    seed: int = 0, device: str = "auto",
) -> tuple[nn.Module, list[EpochMetrics]]:  # fmt: skip
    """The head that a method ends with, on the CPU, and its rows.

    Args:
        method: Of scope `head`, with one net.
        x: Features [N, D], in memory or memory-mapped.
        y: Class numbers, or numbers to predict where `classes` is 1.
        weight: Of the samples, not below zero and not all zero; only proportions count.
        classes: C.
        seed: Of initial weights and order.
        device: `auto`, `cpu` or `cuda`.
    """
    kept = distinct(x, y, weight)
    rows, shares = kept.rows, kept.weight
    if len(rows) == 1:  # BatchNorm cannot train on one
        rows, shares = np.repeat(rows, 2), np.repeat(shares, 2)
    source = FeatureBatches(Features([x], rows, {}))
    labels = torch.as_tensor(y[rows])
    heads, where = HeadFactory(classes, "zeros", seed), pick_device(device)
    split = {"train": SplitData(labels.float() if labels.is_floating_point() else labels.long(), source, None)}
    with _untouched_generator():
        run = WeightedLoop(
            [Net(None, heads(source.plain, 0))], split, classes, seed, heads, where,
            weight=torch.as_tensor(shares / shares.mean()).float(),
        )  # fmt: skip
        told = list(train(phases(method, 0.0), run, lambda run, looks: {}, look=lambda run: {}))
    for words in dict.fromkeys(words for row in told for words in row.get("warnings", ())):
        warnings.warn(words, UserWarning, stacklevel=4)
    return run.whole[0].head.cpu().eval().double(), told


@contextmanager
def _untouched_generator() -> Iterator[None]:
    """The loop seeds torch's global generator; whoever calls from Python keeps theirs."""
    with torch.random.fork_rng(devices=[]):
        yield


def outputs(head: nn.Module, x: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores [b, C] and what the classifier sees [b, Z] of rows in blocks, in float64.

    In double precision a sample's prediction does not depend on which others are asked for with it.
    """
    with torch.no_grad():
        for start in range(0, len(x), BLOCK_ROWS):
            out = head(torch.from_numpy(np.array(x[start : start + BLOCK_ROWS], np.float64)))
            yield out.logits.numpy(), out.z.numpy()
