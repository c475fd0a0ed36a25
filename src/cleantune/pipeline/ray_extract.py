"""Features of all samples into the cache by many processes or machines, streamed by Ray Data, a shard a block.

A shard is read, decoded and passed through the backbone by whoever is free, and appears in the cache whole or not at
all. A lost process or machine loses the shard that it was at; Ray Data gives that one to another. What is in the cache
is not made again. The features are those that `fit` would make, under the same key.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.config.run import configure
from cleantune.data import load
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features.cache import (
    SHARD_ROWS,
    ViewSpec,
    ensure_shard,
    extract_shard,
    features_key,
    find,
    shard_name,
    write_index,
    write_shard,
)
from cleantune.features.encoder import Encoder
from cleantune.features.precision import Precision
from cleantune.pipeline.inputs import PROBED, check_modality, extraction_precision, open_model
from cleantune.pipeline.ray_train import first_line, ray_session, worker_environment
from cleantune.storage.files import cache_folder
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device
from cleantune.utils.malloc import keep_pages


def extract_all(table: dict[str, Any], workers: int, quiet: bool = False) -> dict[str, int]:
    """Fill the cache for a run.

    Args:
        table: As of `fit`: data, model and run.cache.
        workers: Processes at once.
        silent: Say nothing.

    Returns:
        Samples by split.

    Raises:
        UserError: Data or model are missing or do not fit, Ray is missing, or was lost.
    """
    console, config = Console(quiet), configure(table)
    data = load(config.data, config.run.cache)
    if data.kind == "features":
        raise UserError("these data are features already: there is nothing to extract")
    backbone = open_model(config.model, False)
    assert backbone is not None
    check_modality(backbone, data)
    cache = cache_folder(config.run.cache).resolve()
    gpus = int(pick_device(config.model.device) == "cuda")
    with ray_session(workers) as ray:
        given = {"table": table | {"run": table.get("run", {}) | {"cache": str(cache)}}, **worker_environment()}
        said = ray.get(ray.remote(num_gpus=gpus)(precision_in_worker).remote(given))
        precision = Precision(**said)
        console.print(f"features {precision.words} ({precision.why})")
        for name, rows in data.rows.items():
            key = features_key(backbone, rows.samples.fingerprint, precision, config.run.feature_dtype)
            if find(cache, key) is not None:
                continue
            try:
                with console.progress(f"features of {name}") as told:
                    stream(ray, given | {"split": name, "key": key, "precision": said}, len(rows), workers, gpus, told)
            except UserError:
                raise
            except Exception as error:  # Ray has an exception for every way to fail
                raise UserError(
                    f"Ray ended the extraction: {first_line(error)};"
                    " what is finished is in the cache, the same command goes on"
                ) from error
            folder = cache / f"features-{key}"
            write_index(folder, len(rows), backbone.width, read_unreadable(folder), config.run.feature_dtype)
            console.info(f"{name}: {len(rows):,} samples, {folder}")
    return {name: len(rows) for name, rows in data.rows.items()}


def stream(ray: Any, given: dict[str, Any], count: int, workers: int, gpus: int, told: Any) -> None:
    """Every shard of a split, each by one of the workers."""
    shards = -(-count // SHARD_ROWS)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = (
        ray.data.range(shards, override_num_blocks=shards)
        .map_batches(
            Extractor, fn_constructor_args=(given,), batch_size=1, num_gpus=gpus or None, num_cpus=None if gpus else 1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, shards)),
        )
    )  # fmt: skip
    for number, _ in enumerate(done.iter_rows(), start=1):
        told(min(number * SHARD_ROWS, count), count)


class Extractor:
    """One worker: data and backbone once, then a shard at a time."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Open what the driver has opened; paths hold on every machine."""
        keep_pages()  # a worker is a process of our own, as the command line is
        if Path(given["place"]).is_dir():
            os.chdir(given["place"])
        config = configure(given["table"])
        self.cache, self.feature_dtype = cache_folder(config.run.cache), config.run.feature_dtype
        self.samples = load(config.data, config.run.cache).rows[given["split"]].samples
        backbone = open_model(config.model, False)
        assert backbone is not None
        self.precision = Precision(**given["precision"])
        self.backbone = backbone.to(pick_device(config.model.device)).eval()
        if self.precision.channels_last:
            import torch

            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.program = Encoder(self.backbone, self.precision)
        self.folder = self.cache / f"features-{given['key']}"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The shards of these numbers, unless they are there."""
        for k in batch["id"].tolist():
            ensure_shard(self.folder, k, (len(self.samples), self.backbone.width), self.made, self.feature_dtype)
        return batch

    def made(self, rows: range) -> np.ndarray:
        """Features [n, D] of a shard; those of its samples that cannot be read are noted beside it."""
        part = make_model_inputs(self.samples.take(np.asarray(rows)), self.backbone.preprocess, self.cache)  # type: ignore[arg-type]
        f = extract_shard(self.backbone, part, self.precision, range(len(part)), ViewSpec(), self.program)
        unreadable = {str(rows.start + row): reason for row, reason in part.unreadable.items()}
        if unreadable:
            write_shard(
                self.folder / f"{shard_name(rows.start // SHARD_ROWS)}.bad.json", json.dumps(unreadable).encode()
            )
        return f


def read_unreadable(folder: Path) -> dict[int, str]:
    """Samples that the workers could not read."""
    out: dict[int, str] = {}
    for path in sorted(folder.glob("*.bad.json")):
        out |= {int(row): reason for row, reason in json.loads(path.read_text(encoding="utf-8")).items()}
    return out


def precision_in_worker(given: dict[str, Any]) -> dict[str, Any]:
    """The precision that a worker's machine is fastest in, as `fit` would find it there."""
    from dataclasses import asdict

    if Path(given["place"]).is_dir():
        os.chdir(given["place"])
    config = configure(given["table"])
    rows = load(config.data, config.run.cache).rows
    samples = rows["train"].samples
    backbone = open_model(config.model, False)
    assert backbone is not None
    cache = cache_folder(config.run.cache)
    first = make_model_inputs(samples.take(np.arange(min(2 * PROBED, len(samples)))), backbone.preprocess, cache)  # type: ignore[arg-type]
    backbone.to(pick_device(config.model.device))
    return asdict(extraction_precision(backbone, first, config.model, cache, sum(map(len, rows.values()))))
