"""The verb `transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@options.out("study")
@click.option("--synthetic", is_flag=True, help="Use synthetic data and tiny random networks. [default: off]")
@click.option("--model", multiple=True, metavar="NAME=PATH", help="Path of a model. [default: the study's]")
@click.option("--data", multiple=True, metavar="NAME=PATH", help="Path of a task's data. [default: the study's]")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1. [default: the study's]")
@options.QUIET
@options.VERBOSE
def transfer(study: Path, out: Path, synthetic: bool, seeds: int | None, quiet: bool, **places: Any) -> None:
    """Compare frozen backbones on tasks in and out of domain; STUDY is a TOML file, as in runs/paper.

    The same command continues an interrupted study.
    """
    from dataclasses import replace

    from cleantune.studies.transfer import make_synthetic, read, relocate, run
    from cleantune.utils.console import Console

    models, paths = (options.parse_pairs(f"--{name}", places[name]) for name in ("model", "data"))
    config = relocate(read(study), models, paths)
    config = replace(config, seeds=tuple(range(seeds))) if seeds else config
    if synthetic:
        config = make_synthetic(config, out / "synthetic")
    run(config, out, console=Console(quiet), cache=str(out / "cache") if synthetic else None)
    click.echo((out / "results.md").read_text(encoding="utf-8"))
