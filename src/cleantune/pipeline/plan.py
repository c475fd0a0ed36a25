"""What a run will take, said before anything long starts: forward_passes, minutes, disk and memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cleantune.backbones import Backbone, ImagePreprocess
from cleantune.config.run import Config, configure
from cleantune.data import Data
from cleantune.data.model_inputs import MEMORY_FRACTION, ImageInputs, ModelInputs, make_model_inputs
from cleantune.errors import UserError
from cleantune.features.openvino import rate, select_backend
from cleantune.features.precision import Precision, probe_precision
from cleantune.methods.protocol import Phase
from cleantune.noise import parse
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.cost_model import CostEstimate, Workload, estimate_cost
from cleantune.pipeline.inputs import open_model, read_data, recommended_learning_rate
from cleantune.pipeline.throughput import BUDGET, Throughput, measure_throughput
from cleantune.storage.files import cache_folder
from cleantune.training.epochs import phases
from cleantune.training.lora import add_lora
from cleantune.training.models import LinearHead, Net
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device
from cleantune.utils.malloc import peak_bytes

PROBED = 256
"""Samples with which the speed of a model is measured."""
MIN_SAMPLES_FOR_ESTIMATE = 2000
"""`fit` makes no plan for fewer samples: they are done before it is read."""
RESERVED_BYTES = 250_000_000
"""Bytes that the judge's blocks of features and the report's figures take beside the rest."""


@dataclass(frozen=True)
class RunEstimate:
    """What a run is expected to take."""

    sizes: Workload
    spent: CostEstimate | None
    """None where the rehearsal could not be held."""
    speed: Throughput
    extraction: float
    """Seconds until all features are on disk, unless they are cached."""
    how: str
    """Of extraction."""
    disk: int
    """Bytes of the cache and of the run's folder."""
    memory: int
    """Bytes of resident memory at the peak."""

    @property
    def training(self) -> float | None:
        """Seconds of everything after extraction."""
        return None if self.spent is None else self.speed.seconds(self.spent)

    def lines(self) -> list[str]:
        """As a table."""
        from cleantune.utils.format import count, duration

        rows = [("samples", f"{self.sizes.train:,} training, {self.sizes.all - self.sizes.train:,} others")]
        if self.spent is not None and self.training is not None:
            rows.append(("forward_passes", f"{count(self.spent.forward_passes)} of the method"))
            rows.append(("features", f"about {duration(self.extraction)}, unless cached{self.how}"))
            rows.append(("training", f"about {duration(self.training)}"))
        else:
            rows.append(("features", f"about {duration(self.extraction)}, unless cached{self.how}"))
            rows.append(("training", "unknown: the method's epochs could not be rehearsed"))
        rows.append(("disk", f"{self.disk / 1e9:.2f} GB"))
        rows.append(("memory", f"{self.memory / 1e9:.1f} GB at the peak"))
        width = max(len(name) for name, _ in rows)
        return ["expected, by the cost model and a probe of this machine:", *(f"  {n:<{width}}  {v}" for n, v in rows)]


def plan(data: Any = None, model: Any = None, *, quiet: bool = False, **said: Any) -> RunEstimate:
    """What `fit` would take with the same arguments, by a probe of about ten seconds; nothing is trained or kept.

    Args:
        data: As in `fit`.
        model: As in `fit`.
        silent: Say nothing of how data and model were read.
        **said: As in `fit`: method, scope, preset, seed, config, settings, and options by name.

    Raises:
        UserError: As in `fit`.
    """
    from cleantune.pipeline.fit import tabulate

    method, scope, preset, seed = (said.pop(name, None) for name in ("method", "scope", "preset", "seed"))
    table: Mapping[str, Any] = tabulate(
        data, model, method, scope, preset, seed, said.pop("config", None), said.pop("settings", None), said
    )
    if "data" not in table.get("data", {}):
        raise UserError("there are no data: name a folder, a table, embeddings or a Hugging Face dataset")
    config, console = configure(table), Console(quiet)
    rows, _ = read_data(config, console)
    features_only = rows.kind == "features"
    backbone = open_model(config.model, features_only)
    kind = backbone.architecture.model_type if backbone is not None else None
    config = configure(table, kind, features_only)
    todo = phases(config.method, recommended_learning_rate(backbone, config.model))
    return estimate_run(config, rows, backbone, todo)


def estimate_run(
    config: Config, data: Data, backbone: Backbone | None, todo: tuple[Phase, ...], budget: float = BUDGET
) -> RunEstimate:
    """What phases on data will take with a backbone, by a rehearsal and a probe of so many seconds."""
    train, validation, test = (len(data.rows[s]) if s in data.rows else 0 for s in ("train", "validation", "test"))
    sizes = Workload(train, validation, test, len(data.classes))
    views = len(views_to_cache(todo, config.run.cached_augmentations)) if backbone is not None else 0
    try:
        spent = estimate_cost(todo, sizes, expected_noise_rate(None, data), views)
    except (UserError, RuntimeError, ValueError, IndexError):
        spent = None
    trains = any(phase.scope == "all" for phase in todo)
    everything = sum(len(rows) for rows in data.rows.values())
    speed, looks, how = measure_machine(config, data, backbone, trains, budget, everything)
    width = _width(data, backbone)
    stored = 2 if config.run.feature_dtype == "float16" else 4
    features = everything * width * stored + views * train * width * stored
    pixels = _pixels(backbone, everything)
    weights = 0 if backbone is None else 4 * backbone.num_parameters * todo[0].nets
    kept = 3 * weights * trains + weights + 12 * width * len(data.classes)  # weights and two moments; the model
    disk = kept + (0 if backbone is None else features)
    in_memory = pixels <= MEMORY_FRACTION * _free()
    memory = peak_bytes() + (pixels if in_memory else 0) + (features if features <= MEMORY_FRACTION * _free() else 0)
    memory += RESERVED_BYTES + (3 * weights + 4 * everything * width) * trains  # looks make features anew, in float32
    disk += 0 if in_memory else pixels
    extraction = (everything + views * train) / looks if backbone is not None else 0.0
    return RunEstimate(sizes, spent, speed, extraction, how, disk, memory)


def measure_machine(
    config: Config, data: Data, backbone: Backbone | None, trains: bool, budget: float = BUDGET, count: int = 0
) -> tuple[Throughput, float, str]:
    """What this machine does in a second with a model: in training, and in extraction with the engine it will take.

    Args:
        config: Of the run.
        data: Whose first training samples are used.
        backbone: None where the data are features.
        trains: Whether the backbone will learn.
        budget: Seconds of the probe, without those of the choice of engine.
        count: Samples whose features are wanted, which decides whether an engine is worth its conversion.

    Returns:
        Speed, samples a second in extraction, and how they are extracted.
    """
    if backbone is None:
        speed = measure_throughput(None, None, _width(data, None), len(data.classes), budget)
        return speed, speed.looks, ""
    cache, device = cache_folder(config.run.cache), pick_device(config.model.device)
    start = time.perf_counter()
    samples = _some(data, backbone, cache)
    reading = (time.perf_counter() - start) / len(samples)
    backbone.to(device)
    index = torch.arange(len(samples))
    x, memory, setting = samples.eval_view(index), cache / "precision", config.model.precision
    raw = samples.pixels(index) if isinstance(samples, ImageInputs) else None
    look = select_backend(
        backbone, x, precision=setting, backend=config.model.backend, count=count, memory=memory, pixels=raw
    )  # fmt: skip
    learn: Precision = look
    if trains:
        learn = probe_precision(backbone, x, setting, training=True, layout=look.channels_last, memory=memory)
    head = LinearHead(backbone.width, len(data.classes), init="zeros")
    rank = config.model.lora_rank if trains else 0
    body = add_lora(backbone, rank, config.run.train_seed) if rank else copy.deepcopy(backbone)
    net = Net(body, head, learn, look).to(device)
    speed = measure_throughput(net, samples, backbone.width, len(data.classes), budget, trains=trains)
    looks = rate(backbone, x if raw is None else raw, look) if look.backend == "openvino" else speed.looks
    return speed, 1 / (1 / looks + reading), f", {look.words}"


def _some(data: Data, backbone: Backbone, cache: Path) -> ModelInputs:
    """The first training samples that can be read."""
    first = data.rows["train"].samples.take(np.arange(min(PROBED, len(data.rows["train"]))))
    samples = make_model_inputs(first, backbone.preprocess, cache)  # type: ignore[arg-type]
    return samples.take(np.array([i for i in range(len(samples)) if i not in samples.unreadable], np.int64))


def expected_noise_rate(noise: str | None, data: Data) -> float:
    """Share of the training labels that a noise will make wrong, as far as it is foreseen; it only sets the cost.

    Args:
        noise: That is still to come; None: the labels are as they will be learned from.
        data: True labels count where they are known.
    """
    model = parse(noise) if noise is not None else None
    if model is None or model.kind == "none":
        truth = data.truth.get("train")
        known = None if truth is None else truth >= 0
        if truth is None or known is None or not known.any():
            return 0.0
        return float((truth[known] != data.rows["train"].y[known]).mean())
    return model.rate - (model.rate / len(data.classes) if model.kind == "symmetric" and model.include_self else 0.0)


def _width(data: Data, backbone: Backbone | None) -> int:
    if backbone is not None:
        return backbone.width
    return int(data.rows["train"].samples.read([0]).shape[1])  # type: ignore[union-attr]


def _pixels(backbone: Backbone | None, count: int) -> int:
    """Bytes of decoded images."""
    preprocess = backbone.preprocess if backbone is not None else None
    return count * 3 * int(np.prod(preprocess.size)) if isinstance(preprocess, ImagePreprocess) else 0


def _free() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
