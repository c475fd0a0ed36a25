"""Choice of the precision and of the inference backend that a run computes in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.config.run import Config, ModelConfig
from cleantune.data.model_inputs import ImageInputs, ModelInputs
from cleantune.distributed.process_group import ProcessGroup
from cleantune.features.compiling import compiled_where_it_pays
from cleantune.features.openvino import remembered, select_backend
from cleantune.features.precision import Precision, probe_precision
from cleantune.storage.files import cache_folder
from cleantune.storage.run_dir import RunDir

PrecisionPair = tuple[Precision, Precision]
"""Precisions of extraction and of training."""

PROBED = 256
"""Samples with which a precision is timed."""


def stored_precisions(run_dir: RunDir) -> PrecisionPair | None:
    """Return the precisions of an interrupted run, None where there is none."""
    stored = run_dir.precision()
    return (Precision(**stored[0]), Precision(**stored[1])) if stored is not None else None


def store_precisions(run_dir: RunDir, extraction: Precision, training: Precision) -> None:
    """Record the precisions of a run for its continuation."""
    run_dir.write_precision(asdict(extraction), asdict(training))


def select_precisions(
    config: Config, backbone: Backbone, train: ModelInputs, device: str, num_samples: int, trains: bool,
    group: ProcessGroup,
) -> PrecisionPair:  # fmt: skip
    """Return the fastest precisions of extraction and of training, as the first process of a group measures them.

    Args:
        config: Configuration of the run.
        backbone: Backbone on its device.
        train: Training samples.
        device: Device that the run computes on.
        num_samples: Samples whose features are extracted, 0 if unknown.
        trains: Whether the backbone is trained.
        group: Processes that share the run.
    """
    cache = cache_folder(config.run.cache)
    compiles = device == "cuda" and not config.model.lora_rank and config.run.sharding != "fsdp"

    def measure() -> list[dict[str, object]]:
        extraction = extraction_precision(backbone, train, config.model, cache, num_samples)
        training = extraction
        if trains:
            training = _training_precision(backbone, train, config.model, cache, extraction.channels_last, compiles)
        return [asdict(extraction), asdict(training)]

    extraction, training = (Precision(**measured) for measured in group.first(measure))  # type: ignore[arg-type]
    return extraction, training


def extraction_precision(
    backbone: Backbone, inputs: ModelInputs, model: ModelConfig, cache: Path, num_samples: int
) -> Precision:
    """Return the fastest precision for the features of so many samples; the cache keeps what was measured.

    Args:
        backbone: Backbone on its device.
        inputs: Samples; some of them are used for the measurement.
        model: Settings of precision and backend.
        cache: Folder of the cache.
        num_samples: Samples whose features are extracted.
    """
    memory = cache / "precision"
    if len(inputs):
        first = inputs.eval_view(torch.arange(1))  # its shape is part of the key; no other is decoded
        cached = remembered(backbone, first, model.precision, model.backend, num_samples, memory)
        if cached is not None:
            return cached
    index = _probed_rows(inputs)
    return select_backend(
        backbone,
        inputs.eval_view(index),
        precision=model.precision,
        backend=model.backend,
        count=num_samples,
        memory=memory,
        pixels=inputs.pixels(index) if isinstance(inputs, ImageInputs) else None,
    )


def _training_precision(
    backbone: Backbone, train: ModelInputs, model: ModelConfig, cache: Path, channels_last: bool, compiles: bool
) -> Precision:
    """Return the fastest precision of training; a model has one memory layout for extraction and training."""
    x, memory, count = train.eval_view(_probed_rows(train)), cache / "precision", len(train)
    precision = probe_precision(
        backbone, x, model.precision, training=True, layout=channels_last, count=count, memory=memory
    )
    return compiled_where_it_pays(backbone, x, precision, count, memory) if compiles else precision


def _probed_rows(inputs: ModelInputs) -> Tensor:
    """Return the rows of the measurement, without images whose decoding fails."""
    first = torch.arange(min(2 * PROBED, len(inputs)))
    if isinstance(inputs, ImageInputs):
        inputs.pixels(first)
    return torch.tensor([i for i in first.tolist() if i not in inputs.unreadable][:PROBED])
