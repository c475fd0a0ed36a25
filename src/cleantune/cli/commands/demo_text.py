"""The verb `demo-text`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options
from cleantune.cli.output import print_summary


@click.command("demo-text")
@options.out("run")
@options.SEED
@options.overwrite("run")
@options.VERBOSE
def demo_text(out: Path, seed: int | None, overwrite: bool) -> None:
    """Run `fit` on customer messages with 40 % random labels."""
    from cleantune.demo import run_messages

    result = run_messages(out, seed=seed or 0, overwrite=overwrite)
    print_summary(result.summary)
    click.echo(f"report: {result.report}")
