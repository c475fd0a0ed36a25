"""The verb `report`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.VERBOSE
def report(run: Path) -> None:
    """Build the report of a run again."""
    from cleantune.report import build_report

    click.echo(f"report: {build_report(run)}")
