"""The verb `reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from cleantune.cli import options
from cleantune.errors import UserError


@click.command()
@click.argument("block")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results. [no default]")
@click.option(
    "--synthetic",
    is_flag=True,
    help="On 200 made-up images and tiny random networks; all outputs say so. [default: off]",
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUE",
    help="Cells that have it, such as model=ViT-B/16 or noise=symmetric:0.9; repeatable. [default: all]",
)
@click.option(
    "--data", multiple=True, metavar="LOADER=PATH", help="Where data are, as cifar100=PATH. [default: the experiment's]"
)
@click.option(
    "--model", multiple=True, metavar="NAME=PATH", help="Where a model is. [default: the experiment's hub id]"
)
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1. [default: the experiment's]")
@click.option("--resume", is_flag=True, help="Keep the cells that are done and run the others. [default: off]")
@options.overwrite("run")
@click.option("--quiet", is_flag=True, help="Print the tables and nothing before them. [default: off]")
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
    """A table or figure of TURN's paper, ours beside the paper's numbers.

    BLOCK is table2, table3, table4, table5, table9, figure2 or figure3, or a TOML file of the same form (runs/paper).
    """
    from cleantune.studies.turn_paper.reproduce import reproduce as run

    places = {"--data": _pairs("--data", data), "--model": _pairs("--model", model)}
    done = run(
        block, out=out, synthetic=synthetic, only=only, data=places["--data"], models=places["--model"], seeds=seeds,
        resume=resume, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    click.echo(done.text)


def _pairs(flag: str, texts: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not value:
            raise UserError(f'{flag} "{text}": write NAME=PATH')
        out[key] = value
    return out
