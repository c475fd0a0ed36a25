"""The verb `corrupt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cleantune.cli import options
from cleantune.config.data import DataConfig
from cleantune.errors import UserError
from cleantune.utils.format import percent


@click.command()
@click.argument("data")
@click.option(
    "--noise",
    required=True,
    help="Such as symmetric:0.6, asymmetric:0.4, pair:0.3, instance:0.4. [no default]",
    metavar="NOISE",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Table to write: .parquet .csv .tsv .jsonl .npz. [no default]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.", metavar="N")
@options.VERBOSE
@options.from_fields(DataConfig)
def corrupt(data: str, noise: str, out: Path, seed: int, **values: Any) -> None:
    """Write data with label noise, and the true labels in a column of their own.

    Noise captions:0.2 is for pairs of image and caption: it permutes the captions of a fifth of the rows (--text).
    """
    from cleantune.config.schema import from_dict
    from cleantune.data import CAPTION_NOISE, write_corrupted, write_swapped_captions

    if noise.startswith(CAPTION_NOISE):
        if values.get("text") is None:
            raise UserError(f"--noise {noise}: name the column of captions with --text")
        fraction = write_swapped_captions(data, noise, values["text"], out, image=values.get("image"), seed=seed)
        click.echo(f"{out}: {percent(fraction)} of the captions are wrong")
        return
    config = from_dict(DataConfig, {"data": data} | options.drop_unset(values), "data")
    measured = write_corrupted(config, noise, seed, out)
    click.echo(f"{out}: {percent(measured.get('rate', 0.0))} of the labels are wrong")
