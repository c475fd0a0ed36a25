"""Inputs of a run: decoded samples, cached features, and fresh models to train on them."""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from cleantune.backbones import Backbone
from cleantune.config.run import Config, ModelConfig
from cleantune.data import Data, Rows
from cleantune.data.model_inputs import ImageInputs, ModelInputs, make_model_inputs
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.features.backend import ComputeConfig
from cleantune.features.cache import Features, features_key
from cleantune.features.extract import extract
from cleantune.functional.standardize import mean_and_std
from cleantune.pipeline.compute import select_compute
from cleantune.pipeline.resolve import recommended_learning_rate
from cleantune.storage.files import cache_folder
from cleantune.storage.run_dir import RunDir
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.heads import LinearHead
from cleantune.training.lora import add_lora
from cleantune.training.models import Model
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device


@dataclass(frozen=True)
class UnreadableSample:
    """A sample that could not be read."""

    id: Any
    split: str
    place: str
    """File or row, and the reason."""


@dataclass
class RunInputs:
    """Inputs of a run, ready for training. True labels stay in `data.truth`, which models never see."""

    data: Data
    backbone: Backbone | None
    compute: ComputeConfig
    """Inference backend and precisions."""
    features: dict[str, Any]
    """Features by split, [N, D] float32."""
    model_inputs: dict[str, ModelInputs]
    """Samples by split, ready for the backbone; empty where the data are features."""
    unreadable: list[UnreadableSample]
    device: str
    seconds: float
    """Seconds of decoding and extraction."""
    group: ProcessGroup = SINGLE_PROCESS
    """Processes that share the run."""
    lora_rank: int = 0
    """Rank of the adapters that are trained in place of the backbone's weights; 0: none."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def learning_rate(self) -> float:
        """Learning rate recommended for the backbone."""
        return recommended_learning_rate(self.backbone, ModelConfig(lora_rank=self.lora_rank))

    def splits(self, train: FeatureBatches | None = None) -> dict[str, SplitData]:
        """Return the splits as the trainer takes them: given labels, features, samples.

        Args:
            train: Features of the training split with cached augmentations; None: plain ones.
        """
        splits = {}
        for name, rows in self.data.rows.items():
            samples = SampleBatches(self.model_inputs[name]) if name in self.model_inputs else None
            features = train if train is not None and name == "train" else FeatureBatches(self.features[name])
            splits[name] = SplitData(torch.as_tensor(rows.y), features, samples)
        return splits

    def make_models(self, count: int, heads: HeadFactory) -> list[Model]:
        """Return fresh models: the pre-trained backbone, each with a head of its own on standardized features."""

        def make_backbone(k: int) -> Backbone | None:
            if self.backbone is None or not self.lora_rank:
                return copy.deepcopy(self.backbone)
            return add_lora(self.backbone, self.lora_rank, heads.seed + k)

        train, compute = self.features["train"], self.compute
        return [
            Model(
                make_backbone(k), heads(train, k), compute.training, compute.inference, compile_backbone=compute.compile
            )
            for k in range(count)
        ]  # fmt: skip


@dataclass(frozen=True)
class HeadFactory:
    """A factory of linear heads that standardize their features."""

    num_classes: int
    init: Literal["zeros", "normal"]
    seed: int

    def __call__(self, features: Any, k: int) -> LinearHead:
        """Return a head of model k for features [N, D]."""
        scale = features.mean_and_std if isinstance(features, Features) else mean_and_std(features)
        rng = torch.Generator().manual_seed(self.seed + k)
        return LinearHead(len(scale[0]), self.num_classes, init=self.init, standardize=scale, generator=rng)


def prepare_inputs(
    config: Config,
    data: Data,
    backbone: Backbone | None,
    console: Console,
    *,
    compute: ComputeConfig | None = None,
    trains_backbone: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> RunInputs:
    """Decode all samples and extract their features; cached ones are read instead.

    Args:
        config: Configuration of the run.
        data: Data from `load_data`.
        backbone: Backbone from `open_model`; None where the data are features.
        console: Console for messages and progress.
        compute: Backend and precisions of an interrupted run, which are kept.
        trains_backbone: Whether the backbone is trained.
        group: Processes that share the run.

    Raises:
        UserError: Data and model do not fit, or too many samples cannot be read.
    """
    start = time.perf_counter()
    if backbone is None:
        features = {name: _read_features(rows) for name, rows in data.rows.items()}
        device = pick_device(config.model.device)
        return RunInputs(data, None, ComputeConfig(), features, {}, [], device, time.perf_counter() - start, group)
    inputs = decode_inputs(
        config, data, backbone, console,
        compute=compute, trains_backbone=trains_backbone, group=group, extracts=True,
    )  # fmt: skip
    cache, dtype, backend = cache_folder(config.run.cache), config.run.feature_dtype, inputs.compute.inference
    for name, split_inputs in inputs.model_inputs.items():
        # On a CPU, decoding in the background slows down the network; a GPU loses nothing by it.
        if trains_backbone and inputs.device == "cpu":
            _finish_decoding(split_inputs, name, console)
        with backbone.constant_weights(), console.progress(f"features of {name}") as report:
            key = features_key(backbone, data.rows[name].samples.fingerprint, backend, dtype)
            inputs.features[name] = extract(
                backbone, split_inputs, backend, cache, key, report, group=group, feature_dtype=dtype
            )
        if trains_backbone:
            _finish_decoding(split_inputs, name, console)
    drop_unreadable(inputs, config.run.max_unreadable, console, RunDir.UNREADABLE)
    inputs.seconds = time.perf_counter() - start
    return inputs


def _read_features(rows: Rows) -> Any:
    return torch.from_numpy(np.asarray(rows.samples.read(range(len(rows))), np.float32))


def _finish_decoding(split_inputs: ModelInputs, name: str, console: Console) -> None:
    """Decode the images that lazy decoding has left."""
    if isinstance(split_inputs, ImageInputs):
        with console.progress(f"reading {name}") as report:
            split_inputs.finish(report)


def decode_inputs(
    config: Config,
    data: Data,
    backbone: Backbone,
    console: Console,
    *,
    compute: ComputeConfig | None = None,
    trains_backbone: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
    extracts: bool = False,
) -> RunInputs:
    """Decode all samples, move the backbone to its device and choose how to compute; extract no features yet.

    Args:
        config: As in `prepare_inputs`.
        data: Images or texts.
        backbone: As in `prepare_inputs`; it is moved to the device.
        console: As in `prepare_inputs`.
        compute: As in `prepare_inputs`.
        trains_backbone: As in `prepare_inputs`.
        group: As in `prepare_inputs`.
        extracts: Whether the features of all samples follow: images are then decoded lazily, and the backend is
            chosen for this many samples.

    Raises:
        UserError: Data and model do not fit.
    """
    start = time.perf_counter()
    check_modality(backbone, data)
    cache, device = cache_folder(config.run.cache), pick_device(config.model.device)
    augmentation = config.augmentation.image if data.kind == "image" else config.augmentation.text
    model_inputs = {}
    for name, rows in data.rows.items():
        with console.progress(f"reading {name}") as report:
            model_inputs[name] = make_model_inputs(
                rows.samples, backbone.preprocess, cache, report, augmentation, group,  # type: ignore[arg-type]
                lazy=extracts, keep=trains_backbone,
            )  # fmt: skip
    backbone.to(device)
    if compute is None:
        compute = select_compute(
            config, backbone, data.rows, model_inputs["train"],
            extracts=extracts, trains_backbone=trains_backbone, group=group,
        )  # fmt: skip
    console.info(f"features by {compute.inference}{f'; training in {compute.training}' if trains_backbone else ''}")
    if compute.inference.precision.channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RunInputs(
        data, backbone, compute, {}, model_inputs, [], device, time.perf_counter() - start, group,
        config.model.lora_rank if trains_backbone else 0,
    )  # fmt: skip


def check_modality(backbone: Backbone, data: Data) -> None:
    """Refuse a model for data of another modality.

    Raises:
        UserError: The model takes images and the data are texts, or the other way round.
    """
    kind = backbone.architecture.kind
    if backbone.preprocess is not None and kind != data.kind:
        raise UserError(
            f"the model {backbone.source} takes {kind}s, but the data are {data.kind}s: choose another --model, or name"
            f" the column with --{kind}"
        )


def drop_unreadable(inputs: RunInputs, max_unreadable: float, console: Console, list_name: str) -> None:
    """Drop unreadable samples from every split.

    Args:
        inputs: Inputs of the run; its features, or without them its samples, know what could not be read.
        max_unreadable: Largest share of all samples that may be dropped.
        console: Console for the message.
        list_name: File in the run's folder that will list them.

    Raises:
        UserError: Their share is above the limit.
    """
    sources = inputs.features or inputs.model_inputs
    inputs.unreadable = [
        UnreadableSample(inputs.data.rows[name].ids[i], name, place)
        for name, source in sources.items()
        for i, place in sorted(source.unreadable.items())
    ]
    if not inputs.unreadable:
        return
    total, count = sum(len(rows) for rows in inputs.data.rows.values()), len(inputs.unreadable)
    summary = f"{count} of {total} samples cannot be read"
    first = inputs.unreadable[0].place
    if count > max_unreadable * total:
        raise UserError(
            f"{summary}, the first is {first};"
            f" repair or remove them, or allow more than --max-unreadable {max_unreadable:.0%}"
        )
    rows, truth = dict(inputs.data.rows), dict(inputs.data.truth)
    for name in list(rows):
        unreadable = sources[name].unreadable
        if unreadable:
            kept = np.setdiff1d(np.arange(len(rows[name])), list(unreadable))
            rows[name] = rows[name].take(kept)
            if name in inputs.features:
                inputs.features[name] = inputs.features[name].take(kept)
            inputs.model_inputs[name] = inputs.model_inputs[name].take(kept)
            if name in truth:
                truth[name] = truth[name][kept]
    inputs.data = replace(inputs.data, rows=rows, truth=truth)
    console.info(f"{summary} and are left out, the first is {first}; all of them: {list_name}")


def fingerprint(inputs: RunInputs) -> str:
    """Return a SHA-256 of what a resumed run must find unchanged: data, backbone and precision."""
    parts = [inputs.data.fingerprint, inputs.compute.fingerprint]
    if inputs.backbone is not None:
        parts.append(inputs.backbone.fingerprint)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
