"""The verb `review`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=0, help="Port on 127.0.0.1. [default: a free one]", metavar="N")
@click.option("--decisions", type=click.Path(path_type=Path), help="Decision file. [default: decisions.csv in RUN]")
@click.option("--no-browser", is_flag=True, help="Only print the address. [default: off]")
@options.VERBOSE
def review(run: Path, port: int, decisions: Path | None, no_browser: bool) -> None:
    """Review label issues in the browser: keep, relabel, drop, unsure."""
    from cleantune.review.server import serve

    serve(run, decisions, port, browser=not no_browser, say=click.echo)
