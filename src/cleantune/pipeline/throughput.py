"""Throughput of this machine with a model, measured in a few seconds; it turns a cost estimate into seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from cleantune.data.model_inputs import ModelInputs
from cleantune.methods import METHODS
from cleantune.pipeline.cost_model import CostEstimate
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.epochs import phases
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

BUDGET = 5.0
"""Seconds after which the measurement starts nothing more."""
FIRST_PASS_SAMPLES = 4
"""Samples of the first pass; a large backbone may train on one sample per second."""


@dataclass(frozen=True)
class Throughput:
    """Samples per second of a machine."""

    inference: float
    """Samples per second through the backbone, without gradients."""
    training: float
    """Samples per second of fine-tuning, augmentation and optimizer step included."""
    cached: float
    """Samples per second of a head that is trained on cached features."""

    def seconds(self, cost: CostEstimate) -> float:
        """Return the seconds of a run, without extraction, which runs share."""
        passes = cost.num_evaluated + cost.evaluation_forward_passes
        return passes / self.inference + cost.num_trained / self.training + cost.num_cached / self.cached


def measure_throughput(
    model: Model | None,
    samples: ModelInputs | None,
    width: int,
    num_classes: int,
    budget: float = BUDGET,
    *,
    trains: bool = True,
) -> Throughput:
    """Measure the throughput by passes over more and more samples until the time is up.

    Args:
        model: Model with its backbone, whose weights change; None where the data are features.
        samples: Samples for the backbone; None where the data are features.
        width: Dimensions of a feature.
        num_classes: Number of classes.
        budget: Seconds; a pass that started earlier is finished.
        trains: Whether the backbone is trained; otherwise training is assumed to take three forward passes.
    """
    share = budget / 4

    def train_head(count: int) -> None:
        _train(Model(None, _new_head(width, num_classes)), None, width, num_classes, count)

    cached = samples_per_second(train_head, 8192, share)
    if model is None or samples is None:
        return Throughput(cached, cached, cached)
    total = len(samples)
    inference = samples_per_second(lambda count: _infer(model, samples, width, count), total, share)
    if not trains:
        return Throughput(inference, inference / 3, cached)
    training = samples_per_second(lambda count: _train(model, samples, width, num_classes, count), total, 2 * share)
    return Throughput(inference, training, cached)


def samples_per_second(work: Callable[[int], None], most: int, budget: float) -> float:
    """Return samples per second from the slope between two numbers of samples, without the overhead of a pass.

    Each number is passed twice, since the first pass compiles for its shapes. The last two numbers that there was time
    for count.
    """

    def measure(count: int) -> float:
        work(count)
        start = time.perf_counter()
        work(count)
        return time.perf_counter() - start

    start, count = time.perf_counter(), min(FIRST_PASS_SAMPLES, most)
    seconds = measure(count)
    rate = count / seconds
    while count < most and time.perf_counter() - start < budget / 3:
        last_count, last_seconds = count, seconds
        count = min(4 * count, most)
        seconds = measure(count)
        # Where noise exceeds the difference, all of the time counts.
        slope = (count - last_count) / (seconds - last_seconds) if seconds > last_seconds else 0.0
        rate = max(slope, count / seconds)
    return rate


def _new_head(width: int, num_classes: int) -> LinearHead:
    return LinearHead(width, num_classes, init="zeros")


def _trainer(model: Model, samples: ModelInputs | None, width: int, num_classes: int, count: int) -> Trainer:
    rows: Int[np.ndarray, " B"] = np.arange(count)
    batches = None if samples is None else SampleBatches(samples.take(rows))
    split = SplitData(torch.from_numpy(rows % num_classes), FeatureBatches(torch.zeros(count, width)), batches)
    device = next((str(p.device) for p in model.parameters()), "cpu")
    return Trainer([model], {"train": split}, num_classes, 0, lambda f, k: _new_head(width, num_classes), device)


def _train(model: Model, samples: ModelInputs | None, width: int, num_classes: int, count: int) -> None:
    """Train one epoch of cross-entropy on so many samples."""
    method: Any = METHODS["ce"]
    trainer = _trainer(model, samples, width, num_classes, count)
    phase = phases(method(scope="head" if samples is None else "all"), 1e-6)[0]
    trainer.begin_phase(replace(phase, stage=replace(phase.stage, min_steps=0)))
    phase.epoch(trainer)


def _infer(model: Model, samples: ModelInputs, width: int, count: int) -> None:
    """Pass so many samples through the backbone without gradients."""
    predictor = _trainer(model, samples, width, 2, count).predictor
    predictor.weights_changed(backbone=True)  # the features are to be computed
    predictor.evaluate("train", lambda y, logits: logits, [model])
