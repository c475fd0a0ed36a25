"""Swapped captions: pairs of images and captions, or of any two columns, with noise for pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cleantune.data.readers import read_single_table
from cleantune.data.writers import relocate_image_paths, set_column, write_table
from cleantune.errors import UserError
from cleantune.noise.pairs import swap_pairs

CAPTION_NOISE = "captions:"
"""Prefix of a specification of caption noise, such as `captions:0.2`."""


def write_swapped_captions(
    data: Any, noise: str, caption: str, out: str | Path, *, image: str | None = None, seed: int = 0
) -> float:
    """Write a table with a fraction of the captions permuted, and the right captions in `true_<caption>`.

    Args:
        data: Data in any form that `fit` takes; its training split if it has splits.
        noise: Specification such as `captions:0.2`.
        caption: Column to permute.
        out: File to write: `.parquet`, `.csv`, `.tsv` or `.jsonl`.
        image: Column of image paths, which are written relative to `out`.
        seed: Seed of the permutation.

    Returns:
        Fraction of the pairs whose caption differs from the right one; it is lower than the rate if captions repeat.

    Raises:
        UserError: The rate is not between 0 and 1, or a column is missing.
    """
    rate = _parse_rate(noise)
    raw = read_single_table(data, "train", [])
    raw.need(caption, "--text")
    values = raw.table.column(caption).to_pylist()
    swapped = [values[k] for k in swap_pairs(len(values), rate, seed).tolist()]
    table = set_column(raw.table, caption, pa.array(swapped))
    table = set_column(table, f"true_{caption}", pa.array(values)).replace_schema_metadata(None)
    if image is not None:
        raw.need(image, "--image")
        table = relocate_image_paths(table, raw.folder, image, Path(out))
    write_table(table, "text", caption, caption, Path(out))
    num_wrong = sum(bool(a != b) for a, b in zip(values, swapped, strict=True))
    return num_wrong / max(len(values), 1)


def _parse_rate(noise: str) -> float:
    text = noise.removeprefix(CAPTION_NOISE)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise UserError(f'noise "{noise}": "{text}" is no rate between 0 and 1; write for example captions:0.2')
    return rate
