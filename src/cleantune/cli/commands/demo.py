"""The verb `demo`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options
from cleantune.cli.output import print_summary
from cleantune.utils.format import percent


@click.command()
@options.out("run")
@options.SEED
@options.overwrite("run")
@options.VERBOSE
def demo(out: Path, seed: int | None, overwrite: bool) -> None:
    """Run `fit` on handwritten digits with 60 % random labels."""
    from cleantune.demo import BASELINE_EPOCHS, run_digits

    result, baseline = run_digits(out, seed=seed or 0, overwrite=overwrite)
    print_summary(result.summary)
    click.echo(f"full fine-tuning with cross-entropy on the same labels, {BASELINE_EPOCHS} epochs: {percent(baseline)}")
    click.echo(f"report: {result.report}")
