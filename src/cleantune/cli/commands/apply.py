"""The verb `apply`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options

FORMATS = ("csv", "parquet", "fiftyone", "label-studio", "argilla", "cleanlab")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("decisions", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Cleaned data, in the input's format or another. [default: none]"
)
@click.option("--retrain", is_flag=True, help="Refit the probe on the decided labels and rank again. [default: off]")
@click.option(
    "--export", type=click.Choice(FORMATS), help="Write the label table in this format, not the data. [default: none]"
)
@options.VERBOSE
def apply(run: Path, decisions: Path | None, out: Path | None, retrain: bool, export: str | None) -> None:
    """Apply the decisions of a review to the data.

    DECISIONS is decisions.csv of RUN by default.
    """
    from cleantune.review.apply import apply_decisions

    for text in apply_decisions(run, decisions, out, retrain=retrain, export=export):
        click.echo(text)
