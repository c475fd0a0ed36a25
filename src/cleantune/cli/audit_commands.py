"""The verbs audit, review and apply of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.data import DataConfig

FORMS = ("csv", "parquet", "fiftyone", "label-studio", "argilla", "cleanlab")


@click.command()
@click.argument("data")
@click.option(
    "--model", help="Checkpoint folder or hub id; none for features and probabilities. [default: none]", metavar="MODEL"
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run. [no default]")
@click.option("--annotators", help="Columns with further labels, separated by commas. [default: none]", metavar="A,B,C")
@click.option(
    "--source",
    type=click.Choice(["network", "probe"]),
    default="network",
    show_default=True,
    help="Where probabilities in a file come from: a network that learned the labels whole, or a probe.",
)
@click.option(
    "--beta",
    type=float,
    default=1.0,
    show_default=True,
    metavar="BETA",
    help="Of the F-measure that the cut is best for: 1 balances, 2 finds more, 0.5 is surer.",
)
@options.overwrite("run")
@options.SILENT
@options.of(DataConfig, ModelConfig, RunConfig)
def audit(data: str, model: str | None, out: Path, **said: Any) -> None:
    """Find the wrong labels, without fine-tuning.

    DATA is what fit takes, or an .npz with pred_probs [N, C] and label.
    """
    from cleantune.audit import audit as run

    run(data, model, out=out, **{k: v for k, v in said.items() if v is not None})


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=0, help="Of 127.0.0.1. [default: a free one]", metavar="N")
@click.option("--decisions", type=click.Path(path_type=Path), help="File of decisions. [default: decisions.csv in RUN]")
@click.option("--no-browser", is_flag=True, help="Only say the address. [default: off]")
def review(run: Path, port: int, decisions: Path | None, no_browser: bool) -> None:
    """Decide on suspects in a page on this machine: keep, relabel, drop, unsure."""
    from cleantune.review.server import serve

    serve(run, decisions, port, browser=not no_browser, say=click.echo)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("decisions", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Cleaned data, in the input's form or another. [default: none]"
)
@click.option("--retrain", is_flag=True, help="Fit the probe anew on the decided labels and rank again. [default: off]")
@click.option(
    "--export", type=click.Choice(FORMS), help="Write the list of labels in this form instead of data. [default: none]"
)
def apply(run: Path, decisions: Path | None, out: Path | None, retrain: bool, export: str | None) -> None:
    """Write the data with the decisions of a review in it.

    DECISIONS is decisions.csv of RUN where it is left out.
    """
    from cleantune.review.apply import apply_decisions

    for text in apply_decisions(run, decisions, out, retrain=retrain, export=export):
        click.echo(text)
