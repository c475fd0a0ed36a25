"""Writers of tables in the formats that can be read; a file appears only when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cleantune.data.dataset import DataKind
from cleantune.data.raw_table import feature_matrix
from cleantune.errors import UserError


def write_table(table: pa.Table, kind: DataKind, sample: str, label: str, out: Path) -> None:
    """Write a table in the format of the extension of `out`.

    Args:
        table: Table.
        kind: Modality of the samples.
        sample: Column of the samples.
        label: Column of the labels.
        out: File to write.

    Raises:
        UserError: The format is unknown or cannot represent the samples, or the file cannot be written.
    """
    suffix = out.suffix.lower()
    nested = any(pa.types.is_nested(field.type) or pa.types.is_binary(field.type) for field in table.schema)
    if suffix == ".npz":
        if kind != "features":
            raise UserError(f"{out}: .npz is for features only; write .parquet")
        _write(out, lambda file: _write_npz(table, sample, label, file))
    elif suffix == ".parquet":
        _write(out, lambda file: pyarrow.parquet.write_table(table, file))
    elif suffix in (".csv", ".tsv", ".jsonl"):
        if nested:
            raise UserError(f"{out}: {suffix} cannot contain images or features; write .parquet")
        _write(out, lambda file: _write_text(table, suffix, file))
    else:
        raise UserError(
            f"{out}: cannot write the format {suffix or 'without a suffix'}; known: .parquet, .csv, .tsv, .jsonl, .npz"
        )


def _write(out: Path, write: Callable[[BinaryIO], None]) -> None:
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(out)
    except OSError as error:
        raise UserError(f"{out} could not be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _write_npz(table: pa.Table, sample: str, label: str, file: BinaryIO) -> None:
    arrays = {"features": feature_matrix(table.column(sample), "the data", sample)}
    for name, column in (("label", label), ("true_label", "true_label"), ("id", "id"), ("split", "split")):
        if column in table.column_names:
            values = table.column(column).to_pylist()
            if None in values:
                missing: float | str = "" if any(isinstance(value, str) for value in values) else np.nan
                values = [missing if value is None else value for value in values]
            arrays[name] = np.array(values)
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_text(table: pa.Table, suffix: str, file: BinaryIO) -> None:
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    table = pa.table(columns, names=table.column_names)
    if suffix == ".jsonl":
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
        return
    options = pyarrow.csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
    pyarrow.csv.write_csv(table, file, options)


def set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return the table with a column replaced or appended."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def relocate_image_paths(table: pa.Table, folder: Path, column: str, out: Path) -> pa.Table:
    """Return the table with image paths relative to the file that it is written to.

    Args:
        table: Table.
        folder: Folder that its paths start from.
        column: Column of images; only paths are changed.
        out: File to write.
    """
    if not (pa.types.is_string(table.column(column).type) or pa.types.is_large_string(table.column(column).type)):
        return table
    paths = [
        None if path is None else Path(os.path.relpath(folder / path, out.parent)).as_posix()
        for path in table.column(column).to_pylist()
    ]
    return set_column(table, column, pa.array(paths, pa.large_string()))
