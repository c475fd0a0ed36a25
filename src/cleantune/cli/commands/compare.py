"""The verb `compare`."""

from __future__ import annotations

from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.errors import UserError
from cleantune.methods import METHODS


@click.command()
@click.argument("data", required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Checkpoint folder or hub id; repeatable. Not needed for embeddings. [default: none]",
    metavar="MODEL",
)
@click.option("--methods", help=f"Comma-separated, of {', '.join(METHODS)}. [default: all]", metavar="NAMES")
@click.option("--scopes", help="head, all or head,all. [default: head,all; head for embeddings]", metavar="NAMES")
@click.option(
    "--noise",
    "noises",
    multiple=True,
    help="Such as none or symmetric:0.6; repeatable. [default: none]",
    metavar="NOISE",
)
@click.option(
    "--seeds", help="Number of seeds (3), or comma-separated seeds; of noise and training. [default: 3]", metavar="N"
)
@click.option("--preset", help="Preset of the methods that have it, such as paper. [default: none]")
@click.option(
    "--tune/--no-tune",
    default=None,
    help="Try three learning rates per entry on the noisy validation split of the first seed. [default: off]",
)
@options.out("comparison")
@options.CONFIG
@options.setting("Any setting, such as method.probe.epochs=5 for all methods or turn.tau=0.7 for one")
@options.resume("comparison")
@options.overwrite("comparison")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig, RunConfig, exclude={"noise", "noise_seed", "train_seed", "workers"})
def compare(
    models: tuple[str, ...],
    methods: str | None,
    scopes: str | None,
    noises: tuple[str, ...],
    seeds: str | None,
    settings: tuple[str, ...],
    **values: Any,
) -> None:
    """Compare methods, scopes, noises, models and seeds under equal conditions; write a table and a page.

    DATA is an image folder, a table (.csv .tsv .jsonl .parquet), embeddings (.npz), a Hugging Face folder or hf:NAME.
    """
    from cleantune.studies.compare import compare as run

    done = run(
        model=list(models) or None,
        methods=split_names(methods),
        scopes=split_names(scopes),
        noises=list(noises) or None,
        seeds=parse_seeds(seeds),
        settings=list(settings),
        **options.drop_unset(values),
    )
    click.echo(done.markdown)


def split_names(value: str | None) -> list[str] | None:
    """Return comma-separated names as a list, or None if the option is not set."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def parse_seeds(value: str | None) -> int | list[int] | None:
    """Return the number of seeds (`3`) or the seeds themselves (`0,1,5`).

    Raises:
        UserError: The value is neither.
    """
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")] if "," in value else int(value)
    except ValueError:
        raise UserError(f"--seeds {value}: write a number of seeds (3) or the seeds (0,1,2)") from None
