"""The verb `compare`; its options beside the matrix are the fields of the records, as those of `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.data import DataConfig
from cleantune.errors import UserError
from cleantune.methods import METHODS


def split_names(value: str | None) -> list[str] | None:
    """Names between commas; None where nothing is said."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def read_seeds(value: str | None) -> int | list[int] | None:
    """`3` is how many, `0,1,5` which.

    Raises:
        UserError: It is neither.
    """
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")] if "," in value else int(value)
    except ValueError:
        raise UserError(f"--seeds {value}: write how many (3), or which (0,1,2)") from None


@click.command()
@click.argument("data", required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Checkpoint folder or hub id; repeatable. Not needed for embeddings. [default: none]",
    metavar="MODEL",
)
@click.option("--methods", help=f"Names between commas, of {', '.join(METHODS)}. [default: all]", metavar="NAMES")
@click.option("--scopes", help="head, all or head,all. [default: head,all; head for embeddings]", metavar="NAMES")
@click.option(
    "--noise",
    "noises",
    multiple=True,
    help="Such as none or symmetric:0.6; repeatable. [default: none]",
    metavar="NOISE",
)
@click.option(
    "--seeds", help="How many (0, 1, …), or which between commas; of noise and training. [default: 3]", metavar="N"
)
@click.option("--preset", help="Named settings of the methods that have them, such as paper. [default: none]")
@click.option(
    "--tune/--no-tune",
    default=None,
    help="Three learning rates an entry, judged by the noisy validation split of the first seed. [default: off]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the matrix. [no default]")
@options.CONFIG
@options.setting("Any field, as method.probe.epochs=5 for all methods or turn.tau=0.7 for one")
@options.resume("matrix")
@options.overwrite("matrix")
@options.SILENT
@options.of(DataConfig, ModelConfig, RunConfig, left_out={"noise", "noise_seed", "train_seed", "workers"})
def compare(
    models: tuple[str, ...],
    methods: str | None,
    scopes: str | None,
    noises: tuple[str, ...],
    seeds: str | None,
    settings: tuple[str, ...],
    **said: Any,
) -> None:
    """Run methods x scopes x noises x models x seeds under equal conditions; write the table and its page.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.studies.compare import compare as run

    done = run(
        model=list(models) or None,
        methods=split_names(methods),
        scopes=split_names(scopes),
        noises=list(noises) or None,
        seeds=read_seeds(seeds),
        settings=list(settings),
        **{key: value for key, value in said.items() if value is not None},
    )
    click.echo(done.markdown)
