"""Data with corrected labels, written in the format of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleantune.config.data import DataConfig
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.data.writers import relocate_image_paths, set_column, write_table
from cleantune.errors import UserError, did_you_mean
from cleantune.utils.arrays import object_array


def write_cleaned(
    config: DataConfig, relabeled: Mapping[tuple[str, str], str], dropped: set[tuple[str, str]], out: Path
) -> tuple[int, int]:
    """Write the data as one table with some labels changed and some rows removed; other columns and rows are kept.

    Args:
        config: Data that were audited.
        relabeled: New labels as class names, by split and id.
        dropped: Splits and ids of rows to remove.
        out: File to write: `.parquet`, `.csv`, `.tsv`, `.jsonl`, or for features `.npz`.

    Returns:
        The numbers of changed labels and of removed rows.

    Raises:
        UserError: A row is not in the data, a label is no class, or the format of `out` cannot represent the data.
    """
    data, parts, columns = assemble(replace(config, limit=None))
    places = {
        (split, str(id_)): (split, int(row))
        for split, part in parts.items()
        if split in data.rows
        for id_, row in zip(data.rows[split].ids.tolist(), part.rows, strict=True)
    }
    for split, id_ in [*relabeled, *dropped]:
        if (split, id_) not in places:
            raise UserError(f'the data have no row "{id_}" in the split {split}: were they changed since the audit?')
    codes = {name: c for c, name in enumerate(data.classes)}
    tables = []
    for raw in {id(part.raw): part.raw for part in parts.values()}.values():
        labels = read_labels(raw, columns.label, [])
        given = object_array([*(labels.names if labels.is_class_label else labels.values), None])[labels.codes]
        values = data.classes if labels.is_class_label else data.class_values
        keep = np.ones(len(raw), dtype=bool)
        for key, (split, row) in places.items():
            if parts[split].raw is not raw:
                continue
            if key in relabeled:
                if relabeled[key] not in codes:
                    raise UserError(f'"{relabeled[key]}" is no class of the data{did_you_mean(relabeled[key], codes)}')
                given[row] = values[codes[relabeled[key]]]
            keep[row] = key not in dropped
        table = set_column(raw.table, columns.label, pa.array(given.tolist())).replace_schema_metadata(None)
        if columns.kind == "image":
            table = relocate_image_paths(table, raw.folder, columns.sample, out)
        tables.append(table.filter(pa.array(keep)))
    write_table(pa.concat_tables(tables, promote_options="default"), columns.kind, columns.sample, columns.label, out)
    return len(relabeled), len(dropped)
