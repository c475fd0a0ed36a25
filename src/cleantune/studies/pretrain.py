"""Pre-train a backbone from scratch on labels that may be wrong, to study the effect of noise in pre-training.

Source: arXiv:2309.17002, section 2, at the size of one machine. Symmetric noise without further options is exact:
round(rate n) labels of every class become another class.

Differs from the paper: cross-entropy with AdamW, weak augmentation and one cosine schedule, instead of the recipe of
"ResNet strikes back".
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cleantune.backbones import Backbone, random_backbone
from cleantune.config.run import Config
from cleantune.errors import UserError
from cleantune.noise import format_noise, parse_noise
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.compute import stored_compute
from cleantune.pipeline.export import save_models
from cleantune.pipeline.inputs import RunInputs, decode_inputs, drop_unreadable
from cleantune.pipeline.record import versions, write_config
from cleantune.pipeline.resolve import configure_arguments, load_data
from cleantune.storage.files import read_json, write_json
from cleantune.storage.run_dir import RunDir
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer
from cleantune.utils.console import Console

STAGE = {
    "epochs": 15, "learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 128, "warmup": 0.1,
    "freeze_batchnorm": False,
}  # fmt: skip
"""Settings of the only stage; the backbone has the learning rate of the head."""
DEFAULTS: dict[str, Any] = {
    "method": {"name": "ce", "scope": "all", "tune": STAGE},
    "data": {"validation_fraction": 0.0},
}


@dataclass(frozen=True)
class Pretraining:
    """A finished pre-training."""

    path: Path
    """Folder of the run."""
    summary: dict[str, Any]
    """Content of summary.json."""

    @property
    def model(self) -> Path:
        """Path of the transformers folder, for `--model`."""
        return self.path / "model"


def pretrain(
    data: Any = None,
    *,
    out: str | Path,
    backbone: str = "resnet-small",
    seed: int | None = None,
    settings: Mapping[str, Any] | list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Pretraining:
    """Train a backbone from random weights on labels that may be wrong, and write it as a transformers folder.

    Args:
        data: Images or texts with labels, in any form that `fit` takes.
        out: Folder of the run; `model/` in it is the backbone with its classifier.
        backbone: A recipe of `backbones.RECIPES`, or a transformers folder or hub id whose weights are initialized
            randomly.
        seed: Seed of initial weights, order, augmentation and noise.
        settings: Fields by path, `{"method.tune.epochs": 30}`.
        resume: Continue an interrupted run; the result is bitwise identical to an uninterrupted one.
        overwrite: Remove an earlier run from `out` first.
        quiet: Print nothing.
        **options: Fields of data, model and run by name: `label`, `test`, `image_size`, `noise`, …

    Raises:
        UserError: The user can correct something; the message says what, where and how.
    """
    if isinstance(options.get("noise"), str):
        options["noise"] = exact_if_symmetric(options["noise"])
    arguments = FitArguments(
        data=data, model=backbone, seed=seed, config=DEFAULTS, settings=settings, options=options
    )  # fmt: skip
    path = Path(out)
    config = configure_arguments(arguments, resume_from=path if resume else None)
    if any(phase.scope != "all" or phase.num_nets != 1 for phase in config.method.phases()):
        raise UserError(f"pretrain: the method {config.name} does not train one model from the start; take ce or gce")
    folder, console = RunDir(path, resume=resume, overwrite=overwrite), Console(quiet)
    if folder.is_finished:
        console.info(f"{path} is finished already")
        return Pretraining(path, read_json(path / RunDir.SUMMARY))
    return _run(config, folder, console)


def exact_if_symmetric(noise: str) -> str:
    """Return symmetric noise without further options as exact noise, and any other noise unchanged."""
    is_plain = parse_noise(noise).kind == "symmetric" and "," not in noise
    return format_noise(parse_noise(f"{noise},exact=true")) if is_plain else noise


def _run(config: Config, folder: RunDir, console: Console) -> Pretraining:
    start, name = time.perf_counter(), str(config.model.model)
    data, noise = load_data(config, console)
    if data.kind == "features":
        raise UserError("pretrain: these data are features already; it takes images or texts")
    backbone = random_backbone(
        name, seed=config.run.train_seed, image_size=config.model.image_size, max_length=config.model.max_length
    )
    console.info(f"backbone {name}: {backbone.num_parameters:,} parameters, {backbone.width} dimensions")
    inputs = decode_inputs(config, data, backbone, console, compute=stored_compute(folder), trains_backbone=True)
    drop_unreadable(inputs, config.run.max_unreadable, console, RunDir.SUMMARY)
    todo = phases(config.method, config.method.tune.learning_rate)  # type: ignore[attr-defined]
    folder.clear()
    write_config(folder, config, todo, inputs)
    trainer = _make_trainer(config, inputs, backbone, start)
    evaluator = Evaluator(inputs.data, config.run.test_every_epoch)
    for row in folder.truncate_metrics():
        console.row(row)
    for row in train(todo, trainer, evaluator, folder, record_probes=False):
        console.row(row)
    models = [model.cpu() for model in trainer.models]
    save_models(folder.path / RunDir.MODEL, models, classes=data.classes, class_values=data.class_values)
    summary = _summarize(config, inputs, trainer, folder.read_metrics()[-1], noise)
    write_json(folder.path / RunDir.SUMMARY, summary)
    console.info(f"backbone: {folder.path / RunDir.MODEL}")
    return Pretraining(folder.path, summary)


def _make_trainer(config: Config, inputs: RunInputs, backbone: Backbone, start: float) -> Trainer:
    """Return a trainer whose head does not standardize features: those of random weights have no useful scale."""
    seed = config.run.train_seed

    def make_head(_: Any, k: int) -> LinearHead:
        return LinearHead(backbone.width, inputs.num_classes, generator=torch.Generator().manual_seed(seed + k))

    no_features = FeatureBatches(torch.empty(0, backbone.width))  # no phase uses features
    splits = {
        name: SplitData(torch.as_tensor(rows.y), no_features, SampleBatches(inputs.model_inputs[name]))
        for name, rows in inputs.data.rows.items()
    }
    compute = inputs.compute
    model = Model(backbone, make_head(None, 0), compute.training, compute.inference, freeze_batchnorm=False)
    return Trainer([model], splits, inputs.num_classes, seed, make_head, inputs.device, start_time=start)


def _summarize(
    config: Config, inputs: RunInputs, trainer: Trainer, last: Mapping[str, Any], noise: Mapping[str, Any] | None
) -> dict[str, Any]:
    backbone = inputs.backbone
    assert backbone is not None
    tune_seconds = max(trainer.cost.seconds.get("tune", 0.0), 1e-9)
    return {
        "backbone": str(config.model.model),
        "num_parameters": backbone.num_parameters,
        "width": backbone.width,
        "noise": noise,
        "accuracy": {key: last.get(f"accuracy_{key}") for key in ("test", "validation", "validation_true")},
        "loss": last["loss"],
        "samples": {split: len(rows) for split, rows in inputs.data.rows.items()},
        "epochs": config.method.phases()[0].stage.epochs,
        "precision": asdict(inputs.compute.training),
        "seconds": round(trainer.elapsed_seconds, 1),
        "samples_per_second": round(trainer.cost.training_samples / tune_seconds, 1),
        "unreadable": [asdict(sample) for sample in inputs.unreadable],
        "versions": versions(),
    }
