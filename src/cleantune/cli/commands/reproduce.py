"""The verb `reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options


@click.command()
@click.argument("block")
@options.out("results")
@click.option(
    "--synthetic",
    is_flag=True,
    help="Use 200 synthetic images and tiny random networks; all outputs are marked. [default: off]",
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUE",
    help="Run matching cells, such as model=ViT-B/16 or noise=symmetric:0.9; repeatable. [default: all]",
)
@click.option(
    "--data", multiple=True, metavar="LOADER=PATH", help="Path of data, as cifar100=PATH. [default: the experiment's]"
)
@click.option("--model", multiple=True, metavar="NAME=PATH", help="Path of a model. [default: its hub id]")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1. [default: the experiment's]")
@options.resume("reproduction")
@options.overwrite("reproduction")
@options.QUIET
@options.VERBOSE
def reproduce(
    block: str,
    out: Path,
    synthetic: bool,
    only: tuple[str, ...],
    data: tuple[str, ...],
    model: tuple[str, ...],
    seeds: int | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Reproduce a table or figure of the TURN paper (arXiv:2310.17668) next to its numbers.

    BLOCK is table2, table3, table4, table5, table9, figure2 or figure3, or a TOML file of the same form (runs/paper).
    """
    from cleantune.studies.turn_paper.reproduce import reproduce as run

    done = run(
        block, out=out, synthetic=synthetic, only=only, data=options.parse_pairs("--data", data),
        models=options.parse_pairs("--model", model), seeds=seeds, resume=resume, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    click.echo(done.text)
