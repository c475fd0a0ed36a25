"""The verb `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig


@click.command()
@click.argument("data")
@options.MODEL
@options.out("audit")
@click.option("--annotators", help="Columns with further labels, comma-separated. [default: none]", metavar="A,B,C")
@click.option(
    "--source",
    type=click.Choice(["network", "probe"]),
    default="network",
    show_default=True,
    help="Model behind probabilities in a file: a network trained on the labels, or a linear probe.",
)
@click.option(
    "--beta",
    type=float,
    default=1.0,
    show_default=True,
    metavar="BETA",
    help="Beta of the F-beta score that the threshold maximizes; above 1 favors recall.",
)
@options.overwrite("audit")
@options.QUIET
@options.VERBOSE
@options.from_fields(DataConfig, ModelConfig, RunConfig, defaults={"validation_fraction": 0.0})
def audit(data: str, model: str | None, out: Path, **values: Any) -> None:
    """Find wrong labels and estimate their share, without fine-tuning.

    DATA is any input of `fit`, or an .npz file with pred_probs [N, C] and label [N].
    """
    from cleantune.audit import audit as run

    run(data, model, out=out, **options.drop_unset(values))
