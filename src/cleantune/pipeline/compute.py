"""Choice of the inference backend and of the precisions that a run computes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cleantune.backbones import Backbone
from cleantune.config.run import Config, ModelConfig
from cleantune.data import Rows
from cleantune.data.model_inputs import ModelInputs, raw_inputs
from cleantune.distributed.process_group import ProcessGroup
from cleantune.errors import UserError
from cleantune.features.backend import ComputeConfig, InferenceBackend, select_backend
from cleantune.features.cache import features_key, find_features
from cleantune.features.compile import check_compiles
from cleantune.features.precision import select_precision
from cleantune.storage.files import cache_folder
from cleantune.storage.run_dir import RunDir

EXAMPLE_SAMPLES = 16
"""Samples on which the features of two backends are compared."""


def stored_compute(run_dir: RunDir) -> ComputeConfig | None:
    """Return the backend and precisions of an interrupted run, None where there is none."""
    stored = run_dir.compute()
    return ComputeConfig.from_dict(stored) if stored is not None else None


def select_compute(
    config: Config,
    backbone: Backbone,
    rows: Mapping[str, Rows],
    train: ModelInputs,
    *,
    extracts: bool,
    trains_backbone: bool,
    group: ProcessGroup,
) -> ComputeConfig:
    """Return the backend and the precisions of a run, as the first process of a group selects them.

    Args:
        config: Configuration of the run.
        backbone: Backbone on its device.
        rows: Samples by split.
        train: Training samples, ready for the backbone.
        extracts: Whether the features of all samples follow.
        trains_backbone: Whether the backbone is trained.
        group: Processes that share the run.

    Raises:
        UserError: A backend or the compilation that the user asks for does not work here.
    """
    model, cache = config.model, cache_folder(config.run.cache)

    def is_cached(backend: InferenceBackend) -> bool:
        keys = (
            features_key(backbone, split.samples.fingerprint, backend, config.run.feature_dtype)
            for split in rows.values()
        )
        return extracts and all(find_features(cache, key) is not None for key in keys)

    def select() -> dict[str, Any]:
        num_samples = sum(len(split) for split in rows.values()) if extracts else 0
        with backbone.constant_weights():
            inference = select_inference(backbone, train, model, num_samples, is_cached)
        if not trains_backbone:
            return ComputeConfig(inference, inference.precision).to_dict()
        training = select_precision(backbone, model.precision, training=True)
        if model.compile:
            if model.lora_rank or config.run.sharding == "fsdp":
                raise UserError("--compile: it works neither with LoRA adapters nor with --sharding fsdp; leave it out")
            check_compiles(backbone, train.eval_view(torch.arange(min(2, len(train)))), training)
        return ComputeConfig(inference, training, model.compile).to_dict()

    return ComputeConfig.from_dict(group.on_main(select))


def select_inference(
    backbone: Backbone,
    inputs: ModelInputs,
    model: ModelConfig,
    num_samples: int,
    is_cached: Callable[[InferenceBackend], bool] = lambda _: False,
) -> InferenceBackend:
    """Return the backend for the features of so many samples (see `select_backend`).

    Args:
        backbone: Backbone on its device.
        inputs: Samples; the first are an example.
        model: Settings of precision and backend.
        num_samples: Samples whose features are extracted.
        is_cached: Returns whether features by a backend are in the cache.
    """
    return select_backend(
        backbone,
        lambda: raw_inputs(inputs, torch.arange(min(EXAMPLE_SAMPLES, len(inputs)))),
        precision=model.precision,
        backend=model.backend,
        num_samples=num_samples,
        is_cached=is_cached,
    )
