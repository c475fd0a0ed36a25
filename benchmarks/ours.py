"""Our side of each ratio: the parts of the package, called as `fit` calls them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cleantune
from cleantune.backbones import open_backbone
from cleantune.config.run import configure
from cleantune.data.model_inputs import make_model_inputs
from cleantune.features.cache import Features
from cleantune.features.precision import select_precision
from cleantune.features.shards import SHARD_ROWS, MemmapShards, shard_name
from cleantune.functional.gmm import fit_class_mixtures
from cleantune.methods import METHODS
from cleantune.pipeline.inputs import HeadFactory, prepare_inputs
from cleantune.pipeline.resolve import load_data
from cleantune.storage.run_dir import RunDir
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.epochs import phases
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer
from cleantune.utils.console import Console

WHOLE = {"validation_fraction": 0.0, "test_fraction": 0.0}
"""All rows are the training split."""


def extract(model: Any, cache: Path, **data: Any) -> tuple[int, str]:
    """Extract features of a Parquet file to disk, after removing cached features and pixels.

    Returns:
        Number of samples, and the inference backend.
    """
    for folder in [*cache.glob("features-*"), *cache.glob("pixels-*")]:
        shutil.rmtree(folder)
    spec = {key: data.pop(key) for key in ("image_size",) if key in data}
    config = configure({"data": WHOLE | data, "model": {"model": model} | spec, "run": {"cache": str(cache)}})
    rows, _ = load_data(config, Console(quiet=True))
    backbone = model if not isinstance(model, str) else open_backbone(model, image_size=spec.get("image_size"))
    inputs = prepare_inputs(config, rows, backbone, Console(quiet=True))
    return sum(
        len(f) for f in inputs.features.values()
    ), str(inputs.compute.inference)


def probe(features: Any, y: torch.Tensor, classes: int, epochs: int, batch_size: int = 128) -> Trainer:
    """Train a GCE probe on cached features and return its trainer."""
    method: Any = METHODS["gce"]()
    stage = replace(
        method.probe, epochs=epochs, batch_size=batch_size, learning_rate=1e-3, lr_reference_dim=0, min_steps=0
    )
    todo = phases(replace(method, probe=stage), 0.0)
    source = FeatureBatches(features)
    heads = HeadFactory(classes, "zeros", 0)
    loop = Trainer([Model(None, heads(source.plain, 0))], {"train": SplitData(y, source, None)}, classes, 0, heads)
    for phase in todo:
        loop.begin_phase(phase)
        for epoch in range(epochs):
            loop.begin_epoch(epoch)
            phase.epoch(loop)
    return loop


def mixtures(losses: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the clean probability of every sample, with the settings of the naive side."""
    fitted = fit_class_mixtures(losses, y, classes, max_iter=10, tol=1e-2, reg_covar=5e-4)
    return fitted.posterior(losses, y)


def tune_epoch(model: str, data: Path, limit: int, size: int, cache: Path) -> None:
    """Run one epoch of full fine-tuning on weak views, reading the Parquet file included."""
    config = configure({"data": WHOLE | {"data": str(data), "label": "label", "limit": limit}})
    rows, _ = load_data(config, Console(quiet=True))
    train, classes = rows.rows["train"], len(rows.classes)
    backbone = open_backbone(model, image_size=size)
    prepared = make_model_inputs(train.samples, backbone.preprocess, cache)  # type: ignore[arg-type]
    precision = select_precision(backbone, training=True)
    method: Any = METHODS["ce"](scope="all")
    todo = phases(replace(method, tune=replace(method.tune, epochs=1, batch_size=64)), 3e-4)
    heads = HeadFactory(classes, "zeros", 0)
    net = Model(backbone, LinearHead(backbone.width, classes, init="zeros"), precision)
    features = FeatureBatches(torch.zeros(len(prepared), backbone.width))
    loop = Trainer(
        [net], {"train": SplitData(torch.as_tensor(train.y), features, SampleBatches(prepared))}, classes, 0, heads
    )
    loop.begin_phase(todo[0])
    todo[0].epoch(loop)


def method_seconds(
    method: str, preset: str | None, scope: str | None, data: Path, model: str, limit: int, out: Path, **settings: Any
) -> dict[str, Any]:
    """Run `fit` without cached data, and return its metrics (`rows`) and summary."""
    for folder in [out / "run", *(out / "cache").glob("features-*"), *(out / "cache").glob("pixels-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    result = cleantune.fit(
        str(data), model, out=out / "run", method=method, preset=preset, scope=scope, label="human_worst", limit=limit,
        test_fraction=0.0, image_size=64, cache=str(out / "cache"), quiet=True, settings=settings,
    )  # fmt: skip
    return {"rows": [dict(r) for r in RunDir(result.path, resume=True).read_metrics()]} | result.summary


def synthetic(folder: Path, count: int, width: int, classes: int) -> tuple[Features, torch.Tensor]:
    """Write float16 features in shards, a Gaussian per class; 40 % of the labels are redrawn at random."""
    folder.mkdir(parents=True, exist_ok=True)
    center = np.random.default_rng(0).normal(size=(classes, width)).astype(np.float32) * 0.25
    names, labels = [], []
    for k in range(-(-count // SHARD_ROWS)):
        rng, path = np.random.default_rng([1, k]), folder / shard_name(k)
        y = rng.integers(0, classes, SHARD_ROWS)
        labels.append(np.where(rng.random(SHARD_ROWS) < 0.4, rng.integers(0, classes, SHARD_ROWS), y))
        if not path.is_file():
            np.save(path, (center[y] + rng.standard_normal((SHARD_ROWS, width), np.float32)).astype(np.float16))
        names.append(path.name)
    shards = MemmapShards(folder, names, [(SHARD_ROWS, width)] * len(names), ["float16"] * len(names))
    return Features(shards, np.arange(count), {}), torch.from_numpy(np.concatenate(labels)[:count])
