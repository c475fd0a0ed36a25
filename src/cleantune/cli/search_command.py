"""The verb `search`; its options beside the search are the fields of the records, as those of `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.data import DataConfig
from cleantune.methods import METHODS

OBJECTIVES = ("noisy-val", "noisy-val-averaged", "noisy-val-gce")


@click.command()
@click.argument("data", required=False)
@click.option(
    "--model", help="Checkpoint folder or hub id; not needed for embeddings. [default: none]", metavar="MODEL"
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the search. [no default]")
@click.option("--method", help=f"One of {', '.join(METHODS)}. [default: turn]", metavar="NAME")
@click.option("--scope", type=click.Choice(["head", "all"]), help="What learns. [default: the method's own]")
@click.option("--preset", help="Named settings of the method, such as paper. [default: none]", metavar="NAME")
@click.option("--trials", type=int, help="Settings to try, the default among them. [default: 32, in scope all 16]")
@click.option(
    "--space",
    help="paper (Table 7), or a TOML file that narrows or widens it. [default: the ranges of the method's fields]",
    metavar="FILE",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default=OBJECTIVES[0],
    show_default=True,
    help="What is maximized, always on the validation split by given labels.",
)
@click.option("--search-seed", type=int, default=0, show_default=True, help="Of the settings drawn.", metavar="N")
@click.option("--seed", type=int, help="Of split, noise and training together. [default: 0]", metavar="N")
@options.CONFIG
@options.setting("Any field of the default trial, as method.probe.epochs=5")
@options.resume("search")
@options.overwrite("search")
@options.SILENT
@options.of(DataConfig, ModelConfig, RunConfig, left_out={"workers", "test_every_epoch"})
def search(settings: tuple[str, ...], **said: Any) -> None:
    """Search for a method's settings on the noisy validation split; write trials, the best config and a page.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.studies.search import search as run

    done = run(settings=list(settings), **{key: value for key, value in said.items() if value is not None})
    for line in done.words:
        click.echo(line)
