"""Pairs of images and captions, or of any two columns, with captions at the wrong places: to pre-train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cleantune.data.corrupt import relocate_image_paths, set_column
from cleantune.data.readers import read_single_table
from cleantune.data.writers import write_table
from cleantune.errors import UserError
from cleantune.noise.pairs import swap_pairs

KIND = "captions:"
"""How noise of this kind is spelled: `captions:0.2`."""


def write_swapped(
    data: Any, noise: str, caption: str, out: str | Path, *, image: str | None = None, seed: int = 0
) -> float:
    """Write a table in which a share of the captions changed places, with the right ones in `true_` and the name.

    Args:
        data: A table, in any form that `fit` takes; its part `train` where it has parts.
        noise: As `captions:0.2`.
        caption: Column that is swapped.
        out: `.parquet`, `.csv`, `.tsv` or `.jsonl`.
        image: Column of image paths, which are written relative to `out`; None: other columns stay as they are.
        seed: Same data, noise and seed: same places.

    Returns:
        Share of the pairs whose caption differs from the right one; equal captions may change places unseen.

    Raises:
        UserError: The rate or a column is not what it must be.
    """
    rate = _rate(noise)
    part = read_single_table(data, "train", [])
    part.need(caption, "--text")
    values = part.table.column(caption).to_pylist()
    swapped = [values[k] for k in swap_pairs(len(values), rate, seed).tolist()]
    table = set_column(set_column(part.table, caption, pa.array(swapped)), f"true_{caption}", pa.array(values))
    table = table.replace_schema_metadata(None)
    if image is not None:
        part.need(image, "--image")
        table = relocate_image_paths(table, part, image, Path(out))
    write_table(table, "text", caption, caption, Path(out))
    wrong = sum(bool(a != b) for a, b in zip(values, swapped, strict=True))
    return wrong / max(len(values), 1)


def _rate(noise: str) -> float:
    text = noise.removeprefix(KIND)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise UserError(f'noise "{noise}": "{text}" is no rate between 0 and 1; write for example captions:0.2')
    return rate
