"""The verb `search`."""

from __future__ import annotations

from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig

OBJECTIVES = ("noisy-val", "noisy-val-averaged", "noisy-val-gce")


@click.command()
@click.argument("data", required=False)
@options.MODEL
@options.out("search")
@options.METHOD
@options.scope("head", "all")
@options.PRESET
@click.option("--trials", type=int, help="Trials, the default settings included. [default: 32; 16 in scope all]")
@click.option(
    "--space",
    help="paper (Table 7), or a TOML file that changes the space. [default: the ranges of the method's settings]",
    metavar="FILE",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default=OBJECTIVES[0],
    show_default=True,
    help="Objective to maximize, on the given labels of the validation split.",
)
@click.option("--search-seed", type=int, default=0, show_default=True, help="Seed of the sampled trials.", metavar="N")
@options.SEED
@options.CONFIG
@options.setting("Any setting of the default trial, such as method.probe.epochs=5")
@options.resume("search")
@options.overwrite("search")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig, RunConfig, exclude={"workers", "test_every_epoch"})
def search(settings: tuple[str, ...], **values: Any) -> None:
    """Search the settings of a method on the noisy validation split; write trials, best config and a page.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.studies.search import search as run

    for line in run(settings=list(settings), **options.drop_unset(values)).summary:
        click.echo(line)
