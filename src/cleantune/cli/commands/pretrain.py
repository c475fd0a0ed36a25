"""The verb `pretrain`."""

from __future__ import annotations

from typing import Any

import click

from cleantune.cli import options
from cleantune.cli.output import print_aligned
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.utils.format import percent


@click.command()
@click.argument("data", required=False)
@click.option(
    "--backbone",
    default="resnet-small",
    show_default=True,
    help="Recipe (resnet-small, resnet-18, resnet-50), or a transformers folder or hub id with new random weights.",
    metavar="NAME",
)
@options.out("run")
@click.option("--epochs", type=int, help="Epochs. [default: 15]", metavar="N")
@click.option("--seed", type=int, help="Seed of weights, batches, views and noise. [default: 0]", metavar="N")
@options.setting("Any setting, such as method.tune.learning_rate=0.001")
@options.resume("run")
@options.overwrite("run")
@options.QUIET
@options.VERBOSE
@options.from_fields(
    DataConfig,
    ModelConfig,
    RunConfig,
    exclude={"head_init", "model_selection", "fallback_to_probe", "cached_augmentations", "validation_fraction"},
)
def pretrain(settings: tuple[str, ...], epochs: int | None, **values: Any) -> None:
    """Pre-train a backbone from random weights on noisy labels; OUT/model is a transformers folder.

    --noise symmetric:GAMMA flips exactly this share of each class to other classes, as in the study of noisy
    pre-training (arXiv:2309.17002). A longer form, such as symmetric:0.2,include_self=true, is used unchanged.
    """
    from cleantune.studies.pretrain import pretrain as run

    pairs = [*settings, *([f"method.tune.epochs={epochs}"] if epochs is not None else [])]
    done = run(settings=pairs, **options.drop_unset(values))
    print_aligned([("test accuracy", percent(done.summary["accuracy"]["test"])), ("backbone", str(done.model))])
