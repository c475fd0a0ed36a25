"""Readers of table files: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cleantune.data.in_memory import LARGE_BYTES, table_from_dataset
from cleantune.data.raw_table import RawTable
from cleantune.errors import UserError


def read_csv(path: Path) -> RawTable:
    """Read a .csv or .tsv file; columns of numbers are converted if nothing is lost, others stay text.

    Raises:
        UserError: The file is empty or no table of UTF-8 text; the message names the row.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=delimiter), [])
        if not any(header):
            raise UserError(f"{path} is empty: it has not even a header")
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise UserError(f'{path} has two columns named "{min(twice)}"; rename one')
        # Read all as text: type inference would read the id 007 as 7 and the label NA as missing.
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=16 << 20, column_names=header, skip_rows=0),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.large_string() for name in header}, strings_can_be_null=False
            ),
        ).slice(1)
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    columns = [_infer_type(table.column(name)) for name in header]
    return RawTable(path.name, pa.table(columns, names=header), path.parent)


def _infer_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a text column to numbers if their spelling is canonical, so that the text can be recovered."""
    column = pa.chunked_array(column.chunks, pa.large_string())
    filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
    if filled.null_count == len(filled):
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = filled.cast(kind)
        except pa.ArrowInvalid:
            continue
        if kind == pa.float64() or pc.all(pc.equal(numbers.cast(pa.large_string()), filled)).as_py():
            # "007" is a valid float, but probably an id
            has_leading_zero = pc.any(pc.match_substring_regex(filled, r"^[+-]?0\d")).as_py()
            return column if has_leading_zero else numbers
    return column


def read_jsonl(path: Path) -> RawTable:
    """Read a file with one JSON object per line; a key that a line lacks is a missing value.

    Raises:
        UserError: A line is no JSON object, or a column mixes types; the message names it.
    """
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_json_row(line, path, number))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows], name, path.name) for name in names}
    return RawTable(path.name, pa.table(columns), path.parent)


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error.msg}); write one object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is not a JSON object; write one object per line")
    return row


def _column(values: list[Any], name: str, place: str) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        raise UserError(f'{place}: the column "{name}" mixes {", ".join(kinds)}; write one type') from error


def read_parquet(path: Path) -> RawTable:
    """Read a Parquet file; a file above `LARGE_BYTES` is memory-mapped from the cache of Hugging Face datasets.

    Raises:
        UserError: The file is damaged or no Parquet file.
    """
    stat = path.stat()
    if stat.st_size > LARGE_BYTES:
        import datasets

        raw = table_from_dataset(datasets.Dataset.from_parquet(str(path)), path.name)
        identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return RawTable(path.name, raw.table, path.parent, raw.class_names, identity)
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return RawTable(path.name, table, path.parent, _class_names(table.schema.metadata or {}))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the class names of `ClassLabel` columns, which Hugging Face writes into the metadata."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: tuple(kind["names"])
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }
