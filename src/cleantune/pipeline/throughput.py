"""How fast this machine is with a model, by a probe of a few seconds; it makes seconds of what `cost` foresees."""

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
from cleantune.training.batches import FeatureBatches, SampleBatches
from cleantune.training.checkpoint import SplitData
from cleantune.training.epochs import phases
from cleantune.training.models import LinearHead, Net
from cleantune.training.trainer import Trainer

BUDGET = 5.0
"""Seconds after which the probe of a machine begins nothing more."""
FIRST_PASS_SAMPLES = 4
"""Samples of the first pass: a large backbone learns from one a second."""


@dataclass(frozen=True)
class Throughput:
    """What a machine does in a second."""

    looks: float
    """Samples through the backbone without a gradient."""
    trained: float
    """Samples through the backbone forward and backward, views and step included."""
    cached: float
    """Samples that a head learns from on cached features."""

    def seconds(self, spent: CostEstimate) -> float:
        """Time of a run, without extraction, which runs share."""
        return (spent.looked + spent.evaluated) / self.looks + spent.trained / self.trained + spent.cached / self.cached


def measure_throughput(
    net: Net | None,
    samples: ModelInputs | None,
    width: int,
    classes: int,
    budget: float = BUDGET,
    *,
    trains: bool = True,
) -> Throughput:
    """How fast this machine is, by looking at and learning from a few samples, more and more until time is up.

    Args:
        net: With its backbone; its weights change. None where the data are features.
        samples: For the backbone; None where the data are features.
        width: Length of a feature.
        classes: Number of classes.
        budget: Seconds; what is begun before is ended.
        trains: Whether the backbone will learn; else training is not timed and taken for three looks.
    """
    share = budget / 4
    cached = _rate(lambda count: _learn(Net(None, _zeros(width, classes)), None, width, classes, count), 8192, share)
    if net is None or samples is None:
        return Throughput(cached, cached, cached)
    total = len(samples)
    looks = _rate(lambda count: _look(net, samples, width, count), total, share)
    if not trains:
        return Throughput(looks, looks / 3, cached)
    trained = _rate(lambda count: _learn(net, samples, width, classes, count), total, 2 * share)
    return Throughput(looks, trained, cached)


def _rate(work: Callable[[int], None], most: int, budget: float) -> float:
    """Samples a second, by the slope between two numbers of samples: what a pass takes to begin falls out.

    A number is passed twice, as the first time compiles for its shapes; the last two numbers that there was time for
    count.
    """

    def seconds(count: int) -> float:
        work(count)
        start = time.perf_counter()
        work(count)
        return time.perf_counter() - start

    begun, count = time.perf_counter(), min(FIRST_PASS_SAMPLES, most)
    taken = seconds(count)
    rate = count / taken
    while count < most and time.perf_counter() - begun < budget / 3:
        before, last = count, taken
        count = min(4 * count, most)
        taken = seconds(count)
        # Where noise exceeds the difference, all of the time is the samples'.
        rate = max((count - before) / (taken - last) if taken > last else 0.0, count / taken)
    return rate


def _zeros(width: int, classes: int) -> LinearHead:
    return LinearHead(width, classes, init="zeros")


def _run_of(net: Net, samples: ModelInputs | None, width: int, classes: int, count: int) -> Trainer:
    rows: Int[np.ndarray, " B"] = np.arange(count)
    source = None if samples is None else SampleBatches(samples.take(rows))
    features = FeatureBatches(torch.zeros(count, width))
    split = SplitData(torch.from_numpy(rows % classes), features, source)
    device = next((str(p.device) for p in net.parameters()), "cpu")
    return Trainer([net], {"train": split}, classes, 0, lambda f, k: _zeros(width, classes), device)


def _learn(net: Net, samples: ModelInputs | None, width: int, classes: int, count: int) -> None:
    """One epoch of cross-entropy over so many samples."""
    method: Any = METHODS["ce"]
    run = _run_of(net, samples, width, classes, count)
    phase = phases(method(scope="head" if samples is None else "all"), 1e-6)[0]
    run.enter(replace(phase, stage=replace(phase.stage, min_steps=0)))
    phase.epoch(run)


def _look(net: Net, samples: ModelInputs, width: int, count: int) -> None:
    """One look at so many samples."""
    run = _run_of(net, samples, width, 2, count)
    source = run.splits["train"].samples
    assert source is not None
    net.eval()
    run._pass_over(source, lambda index, x: net.features(x))
