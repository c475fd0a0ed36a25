"""Estimate of a run before it starts: forward passes, seconds, disk and memory."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cleantune.backbones import Backbone, ImagePreprocess
from cleantune.config.run import Config
from cleantune.data import Data
from cleantune.data.image_cache import MEMORY_FRACTION
from cleantune.data.model_inputs import ModelInputs, make_model_inputs, raw_inputs
from cleantune.features.encoder import Encoder
from cleantune.features.precision import select_precision
from cleantune.noise import parse_noise
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.compute import select_inference
from cleantune.pipeline.cost_model import CostEstimate, Workload, try_estimate_cost
from cleantune.pipeline.resolve import ResolvedRun
from cleantune.pipeline.throughput import BUDGET, Throughput, measure_throughput
from cleantune.storage.files import cache_folder
from cleantune.training.heads import LinearHead
from cleantune.training.lora import add_lora
from cleantune.training.models import Model
from cleantune.utils.device import pick_device
from cleantune.utils.format import count, duration
from cleantune.utils.malloc import peak_bytes

MIN_SAMPLES_FOR_ESTIMATE = 2000
"""Samples below which `fit` prints no estimate: the run is done before the estimate is read."""
RESERVED_BYTES = 250_000_000
"""Bytes for the blocks of features that label scoring takes, and for the report's figures."""

PROBED = 256
"""Samples with which the throughput is measured."""


@dataclass(frozen=True)
class RunEstimate:
    """Estimate of a run."""

    workload: Workload
    cost: CostEstimate | None
    """None where the dry run of the method failed."""
    throughput: Throughput
    extraction_seconds: float
    """Seconds of extraction where no features are cached."""
    extraction_note: str
    """Precision and backend of extraction."""
    disk_bytes: int
    """Bytes of the cache and of the run's folder."""
    memory_bytes: int
    """Bytes of resident memory at the peak."""

    @property
    def training_seconds(self) -> float | None:
        """Seconds of everything after extraction."""
        return None if self.cost is None else self.throughput.seconds(self.cost)

    def lines(self) -> list[str]:
        """Return the estimate as lines of a table."""
        train, others = self.workload.train, self.workload.all - self.workload.train
        rows = [("samples", f"{train:,} training, {others:,} others")]
        if self.cost is not None:
            rows.append(("forward passes", f"{count(self.cost.forward_passes)} of the method"))
        rows.append(("features", f"about {duration(self.extraction_seconds)}, unless cached{self.extraction_note}"))
        seconds = self.training_seconds
        unknown = "unknown: the dry run of the method's epochs failed"
        rows.append(("training", unknown if seconds is None else f"about {duration(seconds)}"))
        rows.append(("disk", f"{self.disk_bytes / 1e9:.2f} GB"))
        rows.append(("memory", f"{self.memory_bytes / 1e9:.1f} GB at the peak"))
        width = max(len(name) for name, _ in rows)
        head = "estimate from the cost model and a measurement of this machine:"
        return [head, *(f"  {n:<{width}}  {v}" for n, v in rows)]


def estimate_run(run: ResolvedRun, budget: float = BUDGET) -> RunEstimate:
    """Estimate a run by a dry run of its method and a measurement of this machine.

    Args:
        run: Resolved run.
        budget: Seconds of the measurement.
    """
    config, data, backbone = run.config, run.data, run.backbone
    workload = workload_of(data)
    train, everything = workload.train, sum(len(rows) for rows in data.rows.values())
    views = len(views_to_cache(run.phases, config.run.cached_augmentations)) if backbone is not None else 0
    cost = try_estimate_cost(run.phases, workload, expected_noise_rate(None, data), views)
    throughput, extraction, note = measure_machine(config, data, backbone, run.trains_backbone, budget, everything)
    disk, memory = _bytes(run, everything, views)
    seconds = (everything + views * train) / extraction if backbone is not None else 0.0
    return RunEstimate(workload, cost, throughput, seconds, note, disk, memory)


def workload_of(data: Data) -> Workload:
    """Return the sizes of the splits and the number of classes."""
    train, validation, test = (len(data.rows[s]) if s in data.rows else 0 for s in ("train", "validation", "test"))
    return Workload(train, validation, test, len(data.classes))


def _bytes(run: ResolvedRun, everything: int, views: int) -> tuple[int, int]:
    """Return the bytes on disk and in memory at the peak."""
    data, backbone, trains = run.data, run.backbone, run.trains_backbone
    width = feature_width(data, backbone)
    features = (everything + views * len(data.rows["train"])) * width
    features *= 2 if run.config.run.feature_dtype == "float16" else 4
    pixels = _pixel_bytes(backbone, everything)
    weights = 0 if backbone is None else 4 * backbone.num_parameters * run.phases[0].num_nets
    # The checkpoint has the weights and two moments; the model has the weights again.
    disk = 3 * weights * trains + weights + 12 * width * len(data.classes) + (0 if backbone is None else features)
    limit = MEMORY_FRACTION * _available_bytes()
    memory = peak_bytes() + RESERVED_BYTES
    # Evaluation passes of a fine-tuned backbone make features again, in float32.
    memory += (3 * weights + 4 * everything * width) * trains
    memory += features if features <= limit else 0
    if pixels <= limit:
        memory += pixels
    else:
        disk += pixels
    return disk, memory


def measure_machine(
    config: Config, data: Data, backbone: Backbone | None, trains: bool, budget: float = BUDGET, count: int = 0
) -> tuple[Throughput, float, str]:
    """Measure the throughput of this machine with a model.

    Args:
        config: Configuration of the run.
        data: Data whose first training samples are used.
        backbone: Backbone; None where the data are features.
        trains: Whether the backbone is trained.
        budget: Seconds of the measurement, without those of converting to a backend.
        count: Samples whose features are extracted, which decides whether converting to a backend is worth it.

    Returns:
        Throughput, samples per second of extraction, and the backend of extraction in words.
    """
    if backbone is None:
        throughput = measure_throughput(None, None, feature_width(data, None), len(data.classes), budget)
        return throughput, throughput.inference, ""
    cache, device = cache_folder(config.run.cache), pick_device(config.model.device)
    start = time.perf_counter()
    samples = _readable_samples(data, backbone, cache)
    seconds_to_read = (time.perf_counter() - start) / len(samples)
    backbone.to(device)
    backend = select_inference(backbone, samples, config.model, count)
    training = select_precision(backbone, config.model.precision, training=True) if trains else backend.precision
    head = LinearHead(backbone.width, len(data.classes), init="zeros")
    rank = config.model.lora_rank if trains else 0
    body = add_lora(backbone, rank, config.run.train_seed) if rank else copy.deepcopy(backbone)
    model = Model(body, head, training, backend).to(device)
    throughput = measure_throughput(model, samples, backbone.width, len(data.classes), budget, trains=trains)
    inference = throughput.inference
    if backend.name == "openvino":
        inference = Encoder(backbone, backend).measure_throughput(raw_inputs(samples, torch.arange(len(samples))))
    return throughput, 1 / (1 / inference + seconds_to_read), f", by {backend}"


def _readable_samples(data: Data, backbone: Backbone, cache: Path) -> ModelInputs:
    """Return the first training samples that can be read."""
    first = data.rows["train"].samples.take(np.arange(min(PROBED, len(data.rows["train"]))))
    samples = make_model_inputs(first, backbone.preprocess, cache)  # type: ignore[arg-type]
    return samples.take(np.array([i for i in range(len(samples)) if i not in samples.unreadable], np.int64))


def expected_noise_rate(noise: str | None, data: Data) -> float:
    """Return the share of training labels that will be wrong, as far as it is known; it only affects the estimate.

    Args:
        noise: Noise that is still to be injected; None: the labels stay as they are.
        data: Data, whose true labels count where they are known.
    """
    model = parse_noise(noise) if noise is not None else None
    if model is None or model.kind == "none":
        truth = data.truth.get("train")
        if truth is None or not (truth >= 0).any():
            return 0.0
        known = truth >= 0
        return float((truth[known] != data.rows["train"].y[known]).mean())
    return model.rate - (model.rate / len(data.classes) if model.kind == "symmetric" and model.include_self else 0.0)


def feature_width(data: Data, backbone: Backbone | None) -> int:
    """Return the dimensions of a feature."""
    if backbone is not None:
        return backbone.width
    return int(data.rows["train"].samples.read([0]).shape[1])  # type: ignore[union-attr]


def _pixel_bytes(backbone: Backbone | None, num_samples: int) -> int:
    """Return the bytes of decoded images."""
    preprocess = backbone.preprocess if backbone is not None else None
    return num_samples * 3 * int(np.prod(preprocess.size)) if isinstance(preprocess, ImagePreprocess) else 0


def _available_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
