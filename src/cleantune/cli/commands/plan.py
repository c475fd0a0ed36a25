"""The verb `plan`."""

from __future__ import annotations

from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig


@click.command()
@click.argument("data", required=False)
@options.MODEL
@options.METHOD
@options.scope("head", "all", "lora")
@options.PRESET
@options.SEED
@options.CONFIG
@options.setting("Any setting, such as method.tau=0.7")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig, RunConfig)
def plan(settings: tuple[str, ...], **values: Any) -> None:
    """Estimate the cost of `fit` with the same options: forward passes, time, disk, memory.

    The estimate measures this machine for about ten seconds. It trains nothing and writes nothing.
    """
    from cleantune.pipeline.fit import plan as estimate

    click.echo("\n".join(estimate(settings=list(settings), **options.drop_unset(values)).lines()))
