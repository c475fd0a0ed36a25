"""Ids of rows: from a column, from image paths, or row numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

from cleantune.data.columns import Columns
from cleantune.data.raw_table import RawTable, is_text
from cleantune.errors import UserError
from cleantune.utils.arrays import object_array


def read_ids(
    raw: RawTable, rows: Int[np.ndarray, " N"], columns: Columns, id_option: str | None, split: str, notes: list[str]
) -> Shaped[np.ndarray, " N"]:
    """Return the ids of rows, as int64 or as objects of type str.

    Args:
        raw: Table.
        rows: Row numbers.
        columns: Roles of the columns.
        id_option: Id column that the user named.
        split: Split of the rows; test rows need not have the id column.
        notes: Receives messages for the user.

    Raises:
        UserError: An id occurs twice, a row has none, or the column is missing.
    """
    column = columns.id
    if column is not None and id_option and split in ("train", "validation"):
        raw.need(column, "--id")
    if column is not None and raw.has(column):
        return _ids_from_column(raw, rows, column)
    if columns.kind == "image":
        paths = raw.paths(columns.sample)
        ids: np.ndarray | None = None if paths is None else paths[rows]
        if ids is not None and all(path is not None for path in ids):
            if len(set(ids)) == len(ids):
                return ids
            notes.append(f"{raw.name}: some image paths occur twice, so row numbers are the ids")
    return rows.astype(np.int64)


def make_ids_unique(ids: dict[str, np.ndarray], notes: list[str]) -> None:
    """Make the ids of all splits unique and those of train, validation and unlabeled of one type, in place.

    If ids of files clash, those that are not of the training file get the name of their split as a prefix.
    """
    one_type = [split for split in ("train", "validation", "unlabeled") if split in ids]
    used: set[object] = set()
    for split in [*one_type, *(["test"] if "test" in ids else [])]:
        values = ids[split].tolist()
        if not used.isdisjoint(values):
            notes.append(f"ids of the {split} rows occur in other splits too, so they are written as {split}/<id>")
            values = [f"{split}/{value}" for value in values]
            ids[split] = object_array(values)
        used.update(values)
    if any(ids[split].dtype == object for split in one_type):
        for split in one_type:
            ids[split] = object_array(str(value) for value in ids[split].tolist())


def _ids_from_column(raw: RawTable, rows: np.ndarray, column: str) -> np.ndarray:
    values = raw.table.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    missing = np.flatnonzero(values.is_null().to_numpy())
    if len(missing):
        raise UserError(
            f'{raw.name}: row {missing[0]} (from 0) has no id in the column "{column}"; '
            "fill it or name another by --id"
        )
    if pa.types.is_integer(values.type):
        ids = values.to_numpy().astype(np.int64)
    elif is_text(values.type):
        ids = object_array(values.to_pylist())
    else:
        raise UserError(f'{raw.name}: the id column "{column}" is {values.type}; ids are text or whole numbers')
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if (counts > 1).any():
        duplicate = ids[first[counts > 1].min()]
        places = np.flatnonzero(ids == duplicate)
        raise UserError(
            f'{raw.name}: the id "{duplicate}" in the column "{column}" occurs twice, in rows {places[0]} and '
            f'{places[1]} (from 0); name another column by --id, or --id "" for row numbers'
        )
    selected: np.ndarray = ids[rows]
    return selected
