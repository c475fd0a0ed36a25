"""The verbs `evaluate` and `spectrum`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.errors import UserError
from cleantune.fields import describe
from cleantune.spectrum import PRESETS

SPLITS = ("all", "train", "validation", "test")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ood", multiple=True, help="Data of other domains; repeatable. [default: none]", metavar="DATA")
@click.option("--domain-column", help="Column that divides these data into domains. [default: none]", metavar="COL")
@click.option("--text", help="Column of texts in these data. [default: guessed]", metavar="COL")
@click.option("--image", help="Column of images in these data. [default: guessed]", metavar="COL")
@click.option("--label", help="Column of labels in these data. [default: guessed]", metavar="COL")
@click.option(
    "--map",
    "class_map",
    type=click.Path(path_type=Path),
    help='TOML file of lines such as "tabby cat" = "cat", from classes of the run to labels. [default: none]',
)
@click.option("--subset", is_flag=True, help="Only classes that occur in a domain compete there. [default: off]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Table to write as well, .parquet or .csv. [default: none]"
)
def evaluate(runs: tuple[Path, ...], ood: tuple[str, ...], out: Path | None, **said: Any) -> None:
    """Measure finished runs on their own test split and on other domains; one row a run and domain.

    Several RUNS of one method, such as three seeds, give means with their standard deviation.
    """
    from cleantune.evaluation import evaluate as measure
    from cleantune.evaluation import table
    from cleantune.store import write_table

    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise UserError(f"--out {out}: the table is written as .parquet or .csv")
    frame = measure(runs, ood, silent=False, **said)
    if not len(frame):
        raise UserError("there is nothing to measure: the run has no test split; name other data with --ood")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save = frame.to_parquet if out.suffix == ".parquet" else frame.to_csv
        write_table(out, lambda path: save(path, index=False))
    click.echo(table(frame))


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", "models", multiple=True, help="Checkpoint folder or hub id; repeatable.", metavar="MODEL")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Finished run, of which the features that its classifier sees are measured; repeatable. [default: none]",
)
@click.option("--split", type=click.Choice(SPLITS), default="all", show_default=True, help="Whose features.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="official_code",
    show_default=True,
    help="official_code: rows of length 1 without their own mean; paper: features as they are.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of table and page. [no default]")
@click.option("--silent", is_flag=True, help="Say nothing but errors. [default: off]")
def spectrum(data: tuple[str, ...], models: tuple[str, ...], silent: bool, **said: Any) -> None:
    """Singular values of the features of models on data: entropy, dominant share, effective rank, and a page.

    DATA are one or several image folders, tables, embeddings (.npz) or Hugging Face data sets.
    """
    from cleantune.console import Console
    from cleantune.spectra import study

    done = study(data, models, console=Console(silent), **{k: v for k, v in said.items() if v is not None})
    table = done.table[["data", "model", "samples", "width", "sve", "lsvr", "dominant_share", "effective_rank"]]
    click.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    click.echo(f"report: {done.report}")


def with_options(records: dict[str, type], option_of: Any, left_out: set[str]) -> click.Command:
    """`spectrum` with one option for each field of the records, but for those that it has itself."""
    for record in records.values():
        for field in describe(record):
            if field.name not in left_out:
                option_of(field)(spectrum)
    return spectrum
