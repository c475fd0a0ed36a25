"""Extraction of all features into the cache by many processes or machines, streamed by Ray Data, one shard a block.

A free worker reads and decodes a shard and passes it through the backbone; the shard appears in the cache complete or
not at all. Where a process or machine is lost, Ray Data gives its shard to another. Cached shards are not extracted
again. The features and their keys are those of `fit`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.backbones import Backbone
from cleantune.config.run import Config
from cleantune.data import load
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features import shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.cache import features_key, find_features
from cleantune.features.encoder import Encoder
from cleantune.features.extract import extract_shard
from cleantune.pipeline.compute import EXAMPLE_SAMPLES, select_inference
from cleantune.pipeline.inputs import check_modality
from cleantune.pipeline.ray_train import first_line, ray_session
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import cache_folder
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device
from cleantune.utils.worker import WorkerEnvironment


@dataclass(frozen=True)
class ExtractionJob:
    """Arguments of a worker."""

    config: Config
    environment: WorkerEnvironment
    split: str = "train"
    key: str = ""
    """Key of the split's features in the cache."""
    backend: InferenceBackend = InferenceBackend()

    def open(self) -> Backbone:
        """Enter the environment and open the backbone on its device; paths are the same on every machine."""
        self.environment.enter()
        backbone = open_model(self.config.model, features_only=False)
        assert backbone is not None
        return backbone.to(pick_device(self.config.model.device)).eval()


def extract_all(config: Config, workers: int, quiet: bool = False) -> dict[str, int]:
    """Extract the features of all samples into the cache.

    Args:
        config: Configuration of a run; data, model and cache count.
        workers: Number of processes.
        quiet: Print nothing.

    Returns:
        Number of samples by split.

    Raises:
        UserError: Data or model are missing or do not fit, or Ray is missing or was lost.
    """
    console = Console(quiet)
    data = load(config.data, config.run.cache)
    if data.kind == "features":
        raise UserError("these data are features already: there is nothing to extract")
    backbone = open_model(config.model, features_only=False)
    assert backbone is not None
    check_modality(backbone, data)
    cache, dtype = cache_folder(config.run.cache).resolve(), config.run.feature_dtype
    num_gpus = int(pick_device(config.model.device) == "cuda")
    with ray_session(workers) as ray:
        job = ExtractionJob(replace(config, run=replace(config.run, cache=str(cache))), WorkerEnvironment.capture())
        selected = ray.remote(num_gpus=num_gpus)(select_in_worker).remote(job)
        job = replace(job, backend=ray.get(selected))
        console.info(f"features by {job.backend}")
        for name, rows in data.rows.items():
            key = features_key(backbone, rows.samples.fingerprint, job.backend, dtype)
            if find_features(cache, key) is not None:
                continue
            try:
                with console.progress(f"features of {name}") as report:
                    extract_split(ray, replace(job, split=name, key=key), len(rows), workers, num_gpus, report)
            except UserError:
                raise
            except Exception as error:  # Ray has an exception for every way to fail
                raise UserError(
                    f"Ray stopped the extraction: {first_line(error)};"
                    " finished shards are in the cache, run the same command again to continue"
                ) from error
            folder = cache / f"features-{key}"
            shards.write_index(folder, len(rows), backbone.width, read_unreadable(folder), dtype)
            console.info(f"{name}: {len(rows):,} samples, {folder}")
    return {name: len(rows) for name, rows in data.rows.items()}


def extract_split(
    ray: Any, job: ExtractionJob, num_samples: int, workers: int, num_gpus: int, report: Callable[[int, int], None]
) -> None:
    """Extract every shard of a split, each by one of the workers."""
    num_shards = shards.num_shards(num_samples)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = (
        ray.data.range(num_shards, override_num_blocks=num_shards)
        .map_batches(
            ShardExtractor, fn_constructor_args=(job,), batch_size=1, num_gpus=num_gpus or None,
            num_cpus=None if num_gpus else 1, compute=ray.data.ActorPoolStrategy(size=min(workers, num_shards)),
        )
    )  # fmt: skip
    for number, _ in enumerate(blocks.iter_rows(), start=1):
        report(min(number * shards.SHARD_ROWS, num_samples), num_samples)


class ShardExtractor:
    """A worker that opens data and backbone once and then extracts shard after shard."""

    def __init__(self, job: ExtractionJob) -> None:
        """Open data and backbone."""
        config, backbone = job.config, job.open()
        self.cache, self.feature_dtype = cache_folder(config.run.cache), config.run.feature_dtype
        self.samples = load(config.data, config.run.cache).rows[job.split].samples
        if job.backend.precision.channels_last:
            import torch

            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder = Encoder(backbone, job.backend)
        self.folder = self.cache / f"features-{job.key}"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Extract the shards with these numbers, except cached ones."""
        for k in batch["id"].tolist():
            shape = (len(self.samples), self.encoder.backbone.width)
            shards.ensure_shard(self.folder, k, shape, self.extract_rows, self.feature_dtype)
        return batch

    def extract_rows(self, rows: range) -> np.ndarray:
        """Return the features [n, D] of a shard; a file next to it lists its unreadable samples."""
        samples = self.samples.take(np.asarray(rows))
        inputs = make_model_inputs(samples, self.encoder.backbone.preprocess, self.cache)  # type: ignore[arg-type]
        f = extract_shard(self.encoder, inputs, range(len(inputs)))
        unreadable = {str(rows.start + row): reason for row, reason in inputs.unreadable.items()}
        if unreadable:
            path = self.folder / f"{shards.shard_name(rows.start // shards.SHARD_ROWS)}.unreadable.json"
            shards.write_shard(path, json.dumps(unreadable).encode())
        return f


def read_unreadable(folder: Path) -> dict[int, str]:
    """Return the samples that the workers could not read, with the reasons."""
    unreadable: dict[int, str] = {}
    for path in sorted(folder.glob("*.unreadable.json")):
        unreadable |= {int(row): reason for row, reason in json.loads(path.read_text(encoding="utf-8")).items()}
    return unreadable


def select_in_worker(job: ExtractionJob) -> InferenceBackend:
    """Return the backend that `fit` selects on a worker's machine."""
    backbone, config = job.open(), job.config
    rows, cache = load(config.data, config.run.cache).rows, cache_folder(config.run.cache)
    samples = rows["train"].samples
    example = samples.take(np.arange(min(EXAMPLE_SAMPLES, len(samples))))
    inputs = make_model_inputs(example, backbone.preprocess, cache)  # type: ignore[arg-type]
    return select_inference(backbone, inputs, config.model, sum(map(len, rows.values())))
