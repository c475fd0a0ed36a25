"""The verb `spectrum`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig

SPLITS = ("all", "train", "validation", "test")
PRESETS = ("official", "paper")


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--model", "models", multiple=True, help="Checkpoint folder or hub id; repeatable. [default: none]", metavar="MODEL"
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Finished run: measure the features that its classifier receives; repeatable. [default: none]",
)
@click.option("--split", type=click.Choice(SPLITS), default="all", show_default=True, help="Split to measure.")
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="official",
    show_default=True,
    help="official: L2-normalized and centered rows; paper: unchanged features.",
)
@options.out("table and page")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig)
def spectrum(data: tuple[str, ...], models: tuple[str, ...], quiet: bool, **values: Any) -> None:
    """Compute the singular values of features: entropy, dominant share, effective rank, and a page.

    DATA are one or several image folders, tables, embeddings (.npz) or Hugging Face datasets.
    """
    from cleantune.studies.spectrum import measure_spectra
    from cleantune.utils.console import Console

    done = measure_spectra(data, models, console=Console(quiet), **options.drop_unset(values))
    table = done.table[["data", "model", "samples", "width", "sve", "lsvr", "dominant_share", "effective_rank"]]
    click.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    click.echo(f"report: {done.report}")
