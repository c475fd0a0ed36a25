"""What a run is made of before it starts: data, backbone, cached features, and nets to train on them."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cleantune.backbones import Backbone, open_backbone
from cleantune.config.augmentation import ImageAugmentation, TextAugmentation
from cleantune.config.run import Config, ModelConfig
from cleantune.data import Data, Rows, corrupt, load
from cleantune.data.model_inputs import ImageInputs, ModelInputs, make_model_inputs
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.features.cache import Features, extract, features_key
from cleantune.features.compiling import compiled_where_it_pays
from cleantune.features.openvino import remembered, select_backend
from cleantune.features.precision import Precision, probe_precision
from cleantune.functional.standardize import mean_and_std
from cleantune.storage.files import cache_folder
from cleantune.training.batches import FeatureBatches, SampleBatches
from cleantune.training.checkpoint import SplitData
from cleantune.training.lora import LEARNING_RATE_FACTOR, add_lora
from cleantune.training.models import LinearHead, Net
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

PrecisionPair = tuple[Precision, Precision] | None

PROBED = 256
"""Samples with which the precision is timed."""


@dataclass(frozen=True)
class UnreadableSample:
    """A sample that could not be read."""

    id: Any
    split: str
    place: str


@dataclass
class RunInputs:
    """The data of a run, ready to learn from. True labels stay in `data.truth`, which nets never see."""

    data: Data
    backbone: Backbone | None
    precision: Precision
    """Of extraction."""
    training: Precision
    """Of fine-tuning, and of the looks between."""
    features: dict[str, Any]
    """By split, [N, D] float32."""
    prepared: dict[str, ModelInputs]
    unreadable: list[UnreadableSample]
    device: str
    seconds: float
    """Of decoding and extracting."""
    ranks: ProcessGroup = SINGLE_PROCESS
    """Who shares the run."""
    lora_rank: int = 0
    """Of the adapters that learn in the place of the backbone's weights; 0: none."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def learning_rate(self) -> float:
        """Recommended for the backbone."""
        return recommended_learning_rate(self.backbone, ModelConfig(lora_rank=self.lora_rank))

    def splits(self, train: FeatureBatches | None = None) -> dict[str, SplitData]:
        """The splits as the loop sees them: given labels, features, samples.

        Args:
            train: Features of the training split with cached views (`augmented.cached_views`); None: plain ones.
        """
        out = {}
        for name, rows in self.data.rows.items():
            samples = SampleBatches(self.prepared[name]) if name in self.prepared else None
            features = train if train is not None and name == "train" else FeatureBatches(self.features[name])
            out[name] = SplitData(torch.as_tensor(rows.y), features, samples)
        return out

    def nets(self, count: int, heads: HeadFactory) -> list[Net]:
        """Fresh nets: the backbone as pre-trained, each with a head of its own on standardized features."""

        def copied(k: int) -> Backbone | None:
            if self.backbone is None or not self.lora_rank:
                return copy.deepcopy(self.backbone)
            return add_lora(self.backbone, self.lora_rank, heads.seed + k)

        return [Net(copied(k), heads(self.features["train"], k), self.training, self.precision) for k in range(count)]


@dataclass(frozen=True)
class HeadFactory:
    """Makes fresh heads: from features [N, D] and the number of the net to a head that standardizes them."""

    classes: int
    init: Literal["zeros", "normal"]
    seed: int

    def __call__(self, features: Any, k: int) -> LinearHead:
        """The head of net k."""
        scale = features.scale if isinstance(features, Features) else mean_and_std(features)
        rng = torch.Generator().manual_seed(self.seed + k)
        return LinearHead(len(scale[0]), self.classes, init=self.init, standardize=scale, generator=rng)


def read_data(config: Config, console: Console) -> tuple[Data, dict[str, Any] | None]:
    """The data of a run, with the noise that was asked for in its labels, and what that noise came to.

    Raises:
        UserError: In one sentence, for whatever is missing or malformed.
    """
    data = load(config.data, config.run.cache)
    for note in data.notes:
        console.print(note)
    if config.run.noise is None:
        return data, None
    data, noise = corrupt(data, config.run.noise, config.run.noise_seed)
    if "rate" not in noise:
        return data, None
    console.print(f"noise {noise['noise']}: {noise['rate']:.1%} of the training and validation labels are now wrong")
    return data, noise


def prepare_inputs(
    config: Config,
    data: Data,
    backbone: Backbone | None,
    console: Console,
    known: PrecisionPair = None,
    trains: bool = False,
    ranks: ProcessGroup = SINGLE_PROCESS,
) -> RunInputs:
    """Decode and extract; whatever is cached is taken from there.

    Args:
        config: Of the run.
        data: From `read_data`.
        backbone: From `open_model`; None where the data are features.
        console: Told what is found and how far it is.
        known: The precisions of an interrupted run, of extraction and of training, which are kept.
        trains: Whether the backbone will learn, so that its training is timed too.
        ranks: Who shares the run.

    Raises:
        UserError: Data and model do not fit, or too much cannot be read; the sentence says what and where.
    """
    start = time.perf_counter()
    device = pick_device(config.model.device)
    if backbone is None:
        features = {name: _given_features(rows) for name, rows in data.rows.items()}
        precision = Precision(why="features as given")
        return RunInputs(data, None, precision, precision, features, {}, [], device, time.perf_counter() - start, ranks)
    out = decode_inputs(config, data, backbone, console, known, trains, ranks, ahead=True)
    cache, feature_dtype = cache_folder(config.run.cache), config.run.feature_dtype
    for name, ready in out.prepared.items():
        # On a processor that decodes meanwhile a network's layers wait for one another; a GPU loses nothing by it.
        if trains and device == "cpu":
            _finish(ready, name, console)
        with backbone.constant_weights(), console.progress(f"features of {name}") as told:
            key = features_key(backbone, data.rows[name].samples.fingerprint, out.precision, feature_dtype)
            out.features[name] = extract(
                backbone, ready, out.precision, cache, key, told, ranks=ranks, feature_dtype=feature_dtype
            )
        if trains:
            _finish(ready, name, console)
    drop_unreadable(out, config.run.max_unreadable, console, "artifacts/unreadable_samples.csv")
    out.seconds = time.perf_counter() - start
    return out


def _finish(prepared: ModelInputs, name: str, console: Console) -> None:
    """Decode what is left of images that learn."""
    if isinstance(prepared, ImageInputs):
        with console.progress(f"reading {name}") as told:
            prepared.finish(told)


def decode_inputs(
    config: Config,
    data: Data,
    backbone: Backbone,
    console: Console,
    known: PrecisionPair = None,
    trains: bool = False,
    ranks: ProcessGroup = SINGLE_PROCESS,
    ahead: bool = False,
) -> RunInputs:
    """Samples ready for the backbone, on its device, and the precisions to compute in; there are no features yet.

    Args:
        config: As in `prepare_inputs`, as are the others.
        data: With samples.
        backbone: Moved to the device.
        console: Told what was chosen.
        known: Precisions to keep.
        trains: Whether the backbone will learn.
        ranks: Who shares the run.
        ahead: The features of all samples come next: images are decoded ahead of them (`make_model_inputs`, lazily) and the
            program that makes them is chosen for so many.

    Raises:
        UserError: Data and model do not fit.
    """
    start = time.perf_counter()
    check_modality(backbone, data)
    cache, device = cache_folder(config.run.cache), pick_device(config.model.device)
    prepared = {}
    for name, rows in data.rows.items():
        with console.progress(f"reading {name}") as told:
            prepared[name] = make_model_inputs(
                rows.samples, backbone.preprocess, cache, told, _views(config, data), ranks,  # type: ignore[arg-type]
                lazy=ahead, keep=trains,
            )  # fmt: skip
    backbone.to(device)
    count = sum(len(ready) for ready in prepared.values()) if ahead else 0
    compiles = device == "cuda" and not config.model.lora_rank and config.run.sharding != "fsdp"

    def chosen_here() -> list[dict[str, Any]]:
        found = _precisions(backbone, prepared["train"], config.model, cache, trains, count, compiles)
        return [asdict(precision) for precision in found]

    precision, training = known or (Precision(**each) for each in ranks.first(chosen_here))
    for name, chosen in {"features": precision, "training": training}.items() if trains else [("features", precision)]:
        console.print(f"{name} {chosen.words} ({chosen.why})")
    if precision.channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spent = time.perf_counter() - start
    return RunInputs(
        data, backbone, precision, training, {}, prepared, [], device, spent, ranks,
        config.model.lora_rank if trains else 0,
    )  # fmt: skip


def _views(config: Config, data: Data) -> ImageAugmentation | TextAugmentation:
    return config.augmentation.image if data.kind == "image" else config.augmentation.text


def open_model(model: ModelConfig, features_only: bool) -> Backbone | None:
    """The backbone of a run, or None where the data are features.

    Raises:
        UserError: It is missing, or there is one too many.
    """
    if features_only:
        if model.model is not None:
            raise UserError("--model: these data are features already; leave the model out")
        return None
    if model.model is None:
        raise UserError("--model is missing: images and texts need a backbone (a transformers folder or hub id)")
    if isinstance(model.model, Backbone):
        return copy.deepcopy(model.model)
    return open_backbone(model.model, image_size=model.image_size, max_length=model.max_length)


def recommended_learning_rate(backbone: Backbone | None, model: ModelConfig) -> float:
    """The learning rate recommended for a backbone, or for its adapters."""
    if backbone is None:
        return 0.0
    return backbone.learning_rate * (LEARNING_RATE_FACTOR if model.lora_rank else 1.0)


def _given_features(rows: Rows) -> Any:
    return torch.from_numpy(np.asarray(rows.samples.read(range(len(rows))), np.float32))


def check_modality(backbone: Backbone, data: Data) -> None:
    """Refuse a model for other data.

    Raises:
        UserError: It takes images and the data are texts, or the other way round.
    """
    kind = backbone.architecture.kind
    if backbone.preprocess is not None and kind != data.kind:
        remedy = (
            "choose another --model, or name the column with --image"
            if kind == "image"
            else "choose another --model, or name the column with --text"
        )
        raise UserError(f"the model {backbone.source} takes {kind}s, but the data are {data.kind}s: {remedy}")


def _precisions(
    backbone: Backbone, train: ModelInputs, model: ModelConfig, cache: Path, trains: bool, count: int, compiles: bool
) -> tuple[Precision, Precision]:
    """The fastest way to look and to learn, timed on this machine the first time and kept in the cache."""
    look = extraction_precision(backbone, train, model, cache, count)
    if not trains:
        return look, look
    x = train.eval_view(_probed(train))
    last = look.channels_last  # a net has one layout for both
    memory = cache / "precision"
    setting, many = model.precision, len(train)
    training = probe_precision(backbone, x, setting, training=True, layout=last, count=many, memory=memory)
    return look, compiled_where_it_pays(backbone, x, training, len(train), memory) if compiles else training


def extraction_precision(
    backbone: Backbone, prepared: ModelInputs, model: ModelConfig, cache: Path, count: int
) -> Precision:
    """The fastest way to the features of so many samples, timed here the first time and kept in the cache."""
    memory = cache / "precision"
    if len(prepared):
        first = prepared.eval_view(torch.arange(1))  # its shape is what a choice is remembered by; the others can wait
        known = remembered(backbone, first, model.precision, model.backend, count, memory)
        if known is not None:
            return known
    index = _probed(prepared)
    return select_backend(
        backbone,
        prepared.eval_view(index),
        precision=model.precision,
        backend=model.backend,
        count=count,
        memory=memory,
        pixels=prepared.pixels(index) if isinstance(prepared, ImageInputs) else None,
    )


def _probed(prepared: ModelInputs) -> Tensor:
    """The rows with which the precision is timed; images decoded ahead show only there that they are bad."""
    first = torch.arange(min(2 * PROBED, len(prepared)))
    if isinstance(prepared, ImageInputs):
        prepared.pixels(first)
    return torch.tensor([i for i in first.tolist() if i not in prepared.unreadable][:PROBED])


def _skipped(data: Data, sources: Mapping[str, Any]) -> list[UnreadableSample]:
    """Every sample that could not be read, from what says so: features, or samples before there are any."""
    return [
        UnreadableSample(data.rows[name].ids[i], name, place)
        for name, source in sources.items()
        for i, place in sorted(source.unreadable.items())
    ]


def drop_unreadable(material: RunInputs, max_unreadable: float, console: Console, listed: str) -> None:
    """Take unreadable samples out of every split.

    Args:
        material: Its features, or where it has none its prepared samples, say which are bad.
        max_unreadable: Largest share that may go.
        console: Told about the first one, and that
        listed: is the file of the run that will have all of them.

    Raises:
        UserError: Their share is above the limit.
    """
    sources = material.features or material.prepared
    material.unreadable = _skipped(material.data, sources)
    if not material.unreadable:
        return
    total = sum(len(rows) for rows in material.data.rows.values())
    first = material.unreadable[0].place
    count = len(material.unreadable)
    if count > max_unreadable * total:
        raise UserError(
            f"{count} of {total} samples cannot be read, the first is {first};"
            f" repair or remove them, or allow more than --max-unreadable {max_unreadable:.0%}"
        )
    rows, truth = dict(material.data.rows), dict(material.data.truth)
    for name in list(rows):
        unreadable = sources[name].unreadable
        if unreadable:
            good = np.setdiff1d(np.arange(len(rows[name])), list(unreadable))
            rows[name] = rows[name].take(good)
            if name in material.features:
                material.features[name] = material.features[name].take(good)
            material.prepared[name] = material.prepared[name].take(good)
            if name in truth:
                truth[name] = truth[name][good]
    material.data = replace(material.data, rows=rows, truth=truth)
    console.print(
        f"{count} of {total} samples cannot be read and are left out, the first is {first}; all of them: {listed}"
    )


def fingerprint(material: RunInputs) -> str:
    """SHA-256 of what a resumed run must find unchanged: data, backbone and precision."""
    parts = [material.data.fingerprint, material.precision.fingerprint, material.training.fingerprint]
    if material.backbone is not None:
        parts.append(material.backbone.fingerprint)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
