"""Data with decided labels in it, written in the form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cleantune.config.data import DataConfig
from cleantune.data.corrupt import relocate_image_paths, set_column
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.data.writers import write_table
from cleantune.errors import UserError, did_you_mean
from cleantune.utils.arrays import object_array


def write_cleaned(
    spec: DataConfig, relabeled: Mapping[tuple[str, str], str], dropped: set[tuple[str, str]], out: Path
) -> tuple[int, int]:
    """Write the data as one table with some labels changed and some rows left out; every other column and row stays.

    Args:
        spec: The data that was audited.
        relabeled: New labels, as class names, by split and id.
        dropped: Splits and ids of rows that are left out.
        out: `.parquet`, `.csv`, `.tsv`, `.jsonl`, or for features `.npz`.

    Returns:
        How many labels changed and how many rows are left out.

    Raises:
        UserError: A row is not in the data, or the form of `out` cannot hold them.
    """
    data, pieces, columns = assemble(replace(spec, limit=None))
    place = {(s, str(i)): (s, int(row)) for s, piece in pieces.items() if s in data.rows
             for i, row in zip(data.rows[s].ids.tolist(), piece.rows, strict=True)}  # fmt: skip
    for key in [*relabeled, *dropped]:
        if key not in place:
            raise UserError(
                f'the data have no row "{key[1]}" in the split {key[0]}: were they changed since the audit?'
            )
    number = {name: c for c, name in enumerate(data.classes)}
    tables, parts = [], list({id(piece.part): piece.part for piece in pieces.values()}.values())
    for part in parts:
        labels = read_labels(part, columns.label, [])
        words = labels.names if labels.declared else labels.values
        given: Any = object_array([*words, None])[labels.codes]
        keep = np.ones(len(part), dtype=bool)
        values = data.classes if labels.declared else data.class_values
        for key, (split, row) in place.items():
            if pieces[split].part is not part:
                continue
            if key in relabeled:
                if relabeled[key] not in number:
                    raise UserError(f'"{relabeled[key]}" is no class of the data{did_you_mean(relabeled[key], number)}')
                given[row] = values[number[relabeled[key]]]
            keep[row] = key not in dropped
        table = set_column(part.table, columns.label, pa.array(given.tolist())).replace_schema_metadata(None)
        if columns.kind == "image":
            table = relocate_image_paths(table, part, columns.sample, out)
        tables.append(table.filter(pa.array(keep)))
    whole = pa.concat_tables(tables, promote_options="default")
    write_table(whole, columns.kind, columns.sample, columns.label, out)
    return len(relabeled), len(dropped)
