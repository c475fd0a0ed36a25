"""The verb `backbones`."""

from __future__ import annotations

import click


@click.command()
def backbones() -> None:
    """List the architectures and the feature of each."""
    from cleantune.backbones import list_architectures

    rows = list_architectures()
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        click.echo("  ".join(f"{row[name]!s:<{width}}" for name, width in widths.items()).rstrip())
