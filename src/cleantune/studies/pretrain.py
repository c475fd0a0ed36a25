"""Pre-training from scratch on labels that may be wrong: how noise gets into a backbone, for studies of what it does.

Source: the study of arXiv:2309.17002, section 2 (nmtune spec 1.2), at the size of one machine. Symmetric noise without
further words is exact: round(rate n) labels of every class become one of the others.

Differs from the paper: cross-entropy with AdamW, weak views and one cosine, not the recipe of "ResNet strikes back".
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
from cleantune.data import Data
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
"""Of the only phase; the backbone learns at the rate of the head."""
DEFAULTS: dict[str, Any] = {
    "method": {"name": "ce", "scope": "all", "tune": STAGE},
    "data": {"validation_fraction": 0.0},
}


@dataclass(frozen=True)
class Pretrained:
    """A finished pre-training."""

    path: Path
    """Its folder."""
    summary: dict[str, Any]
    """What summary.json holds."""

    @property
    def model(self) -> Path:
        """The transformers folder: for `--model`."""
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
) -> Pretrained:
    """Train a backbone from random weights on labels that may be wrong, and write it as a transformers folder.

    Args:
        data: Images or texts with labels, in any form that `fit` takes.
        out: Folder of the run; `model/` in it is the backbone with its classifier.
        backbone: A recipe of `backbones.RECIPES`, or a transformers folder or hub id whose weights are drawn anew.
        seed: Of initial weights, order, views and noise.
        settings: Fields by path, `{"method.tune.epochs": 30}`.
        resume: Go on with an interrupted run; the result is that of an uninterrupted one, bit for bit.
        overwrite: Remove an earlier run in `out` first.
        silent: Say nothing.
        **options: Fields of the data, the model and the run by name: `label`, `test`, `image_size`, `noise`, …

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    if isinstance(options.get("noise"), str):
        options["noise"] = exact(options["noise"])
    arguments = FitArguments(
        data=data, model=backbone, seed=seed, config=DEFAULTS, settings=settings, options=options
    )  # fmt: skip
    path = Path(out)
    config = configure_arguments(arguments, resume_from=path if resume else None)
    _refuse_other_methods(config)
    folder, console = RunDir(path, resume=resume, overwrite=overwrite), Console(quiet)
    if folder.is_finished:
        console.info(f"{path} is finished already")
        return Pretrained(path, read_json(path / "summary.json"))
    return _run(config, folder, console)


def exact(noise: str) -> str:
    """Symmetric noise without further words as the study has it."""
    parsed = parse_noise(noise)
    plain = parsed.kind == "symmetric" and "," not in noise
    return format_noise(parse_noise(f"{noise},exact=true")) if plain else noise


def _refuse_other_methods(config: Config) -> None:
    todo = config.method.phases()
    if any(phase.scope != "all" or phase.num_nets != 1 for phase in todo):
        raise UserError(f"pretrain: the method {config.name} does not train a whole net from the start; take ce or gce")


def _run(config: Config, folder: RunDir, console: Console) -> Pretrained:
    start, name = time.perf_counter(), str(config.model.model)
    data, noise = load_data(config, console)
    if data.kind == "features":
        raise UserError("pretrain: these data are features already; it takes images or texts")
    made = random_backbone(
        name, seed=config.run.train_seed, image_size=config.model.image_size, max_length=config.model.max_length
    )
    console.info(f"backbone {name}: {made.num_parameters:,} weights, {made.width} numbers a sample")
    material = decode_inputs(config, data, made, console, compute=stored_compute(folder), trains_backbone=True)
    drop_unreadable(material, config.run.max_unreadable, console, "summary.json")
    todo = phases(config.method, config.method.tune.learning_rate)  # type: ignore[attr-defined]
    folder.clear()
    write_config(folder, config, todo, material)
    loop = _loop(config, material, made, start)
    judge = Evaluator(material.data, config.run.test_every_epoch)
    for row in folder.truncate_metrics():
        console.row(row)
    for row in train(todo, loop, judge, folder, record_probes=False):
        console.row(row)
    save_models(
        folder.path / "model", [net.cpu() for net in loop.models], classes=data.classes, class_values=data.class_values
    )
    told = _summary(config, material, loop, folder.read_metrics()[-1], noise)
    write_json(folder.path / "summary.json", told)
    console.info(f"backbone: {folder.path / 'model'}")
    return Pretrained(folder.path, told)


def _loop(config: Config, material: RunInputs, backbone: Backbone, start: float) -> Trainer:
    """The run: a net whose head is not standardized, since features of random weights have no scale worth keeping."""
    seed = config.run.train_seed

    def head(_: Any, k: int) -> LinearHead:
        return LinearHead(backbone.width, material.num_classes, generator=torch.Generator().manual_seed(seed + k))

    nothing = FeatureBatches(torch.empty(0, backbone.width))  # no phase is on features
    splits = {
        name: SplitData(torch.as_tensor(rows.y), nothing, SampleBatches(material.model_inputs[name]))
        for name, rows in material.data.rows.items()
    }
    net = Model(
        backbone, head(None, 0), material.compute.training, material.compute.inference, freeze_batchnorm=False
    )
    return Trainer([net], splits, material.num_classes, seed, head, material.device, start_time=start)


def _summary(
    config: Config, material: RunInputs, run: Trainer, last: Mapping[str, Any], noise: Mapping[str, Any] | None
) -> dict[str, Any]:
    data: Data = material.data
    assert material.backbone is not None
    return {
        "backbone": str(config.model.model),
        "parameters": material.backbone.num_parameters,
        "width": material.backbone.width,
        "noise": noise,
        "accuracy": {key: last.get(f"accuracy_{key}") for key in ("test", "validation", "validation_true")},
        "loss": last["loss"],
        "samples": {split: len(rows) for split, rows in data.rows.items()},
        "epochs": config.method.phases()[0].stage.epochs,
        "precision": asdict(material.compute.training),
        "seconds": round(run.elapsed_seconds, 1),
        "images_a_second": round(run.cost.training_samples / max(run.cost.seconds.get("tune", 0.0), 1e-9), 1),
        "skipped": [asdict(unreadable) for unreadable in material.unreadable],
        "versions": versions(),
    }


__all__ = ["Pretrained", "exact", "pretrain"]
