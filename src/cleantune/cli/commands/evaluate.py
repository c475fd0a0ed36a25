"""The verb `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.cli.output import check_table_path, write_frame
from cleantune.errors import UserError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ood", multiple=True, help="Data of other domains; repeatable. [default: none]", metavar="DATA")
@click.option("--domain-column", help="Column that splits these data into domains. [default: none]", metavar="COL")
@click.option("--text", help="Column of texts in these data. [default: guessed]", metavar="COL")
@click.option("--image", help="Column of images in these data. [default: guessed]", metavar="COL")
@click.option("--label", help="Column of labels in these data. [default: guessed]", metavar="COL")
@click.option(
    "--map",
    "class_map",
    type=click.Path(path_type=Path),
    help='TOML file with lines such as "tabby cat" = "cat", from classes of the run to labels. [default: none]',
)
@click.option("--subset", is_flag=True, help="Restrict predictions to the classes of a domain. [default: off]")
@click.option("--out", type=click.Path(path_type=Path), help="Table to write, .parquet or .csv. [default: none]")
@options.VERBOSE
def evaluate(runs: tuple[Path, ...], ood: tuple[str, ...], out: Path | None, **values: Any) -> None:
    """Evaluate finished runs on their test split and on other domains; one row per run and domain.

    Several RUNS of one method, such as three seeds, give mean and standard deviation.
    """
    from cleantune.studies.evaluate import evaluate as measure
    from cleantune.studies.evaluate import table

    check_table_path(out)
    frame = measure(runs, ood, quiet=False, **values)
    if not len(frame):
        raise UserError("there is nothing to measure: the run has no test split; name other data with --ood")
    if out is not None:
        write_frame(out, frame)
    click.echo(table(frame))
