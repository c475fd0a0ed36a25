"""The verb `extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="Checkpoint folder or hub id. [no default]", metavar="MODEL")
@options.CONFIG
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig)
@click.option("--workers", type=int, default=1, show_default=True, help="Number of Ray processes.", metavar="N")
@click.option("--cache", help="Shared cache folder. [default: $CLEANTUNE_CACHE, else ~/.cache/cleantune]")
def extract(data: str, model: str, config: Path | None, quiet: bool, workers: int, **values: Any) -> None:
    """Extract the features of all samples into the cache, on one or many machines; `fit` uses them.

    DATA is an image folder or a table of images or texts; all machines read it under the same path.
    """
    from cleantune.pipeline.arguments import FitArguments
    from cleantune.pipeline.ray_extract import extract_all
    from cleantune.pipeline.resolve import configure_arguments

    arguments = FitArguments(data=data, model=model, config=config, options=options.drop_unset(values))
    for split, count in extract_all(configure_arguments(arguments), workers, quiet).items():
        click.echo(f"{split}  {count:,} samples")
