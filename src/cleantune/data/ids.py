"""Ids of rows: from a column, from image paths, or row numbers; unique where labels are listed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

from cleantune.data.columns import Columns
from cleantune.data.raw_table import RawTable, is_text
from cleantune.errors import UserError
from cleantune.utils.arrays import object_array


def read_ids(
    part: RawTable, rows: Int[np.ndarray, " N"], columns: Columns, named: str | None, split: str, notes: list[str]
) -> Shaped[np.ndarray, " N"]:
    """Ids of some rows of a part: int64, or str as objects.

    Args:
        part: Where the rows are.
        rows: Their numbers.
        columns: Which columns hold id and sample.
        named: The id column that the user asked for.
        split: What the rows become; test rows may lack the column.
        notes: Gets what was done instead.

    Raises:
        UserError: Naming the id that stands twice, the row without one, or the column that is missing.
    """
    column = columns.id
    if column is not None and named and split in ("train", "validation"):
        part.need(column, "--id")
    if column is not None and part.has(column):
        return _from_column(part, rows, column)
    if columns.kind == "image":
        paths = part.paths(columns.sample)
        own = None if paths is None else paths[rows]
        if own is not None and all(path is not None for path in own):
            if len(set(own)) == len(own):
                return object_array(own.tolist())
            notes.append(f"{part.name}: some image paths stand twice, so row numbers are the ids")
    return rows.astype(np.int64)


def unify_ids(ids: dict[str, np.ndarray], notes: list[str]) -> None:
    """Make ids of train, validation and unlabeled unique together and of one type; test ids only differ from them.

    Where files clash, those that are not of the training file get the name of their split before them.
    """
    listed = [split for split in ("train", "validation", "unlabeled") if split in ids]
    seen: set[object] = set()
    for split in [*listed, *(["test"] if "test" in ids else [])]:
        own = ids[split].tolist()
        if not seen.isdisjoint(own):
            notes.append(f"ids of the {split} rows stand elsewhere too, so they are written as {split}/<id>")
            own = [f"{split}/{value}" for value in own]
            ids[split] = object_array(own)
        seen.update(own)
    if any(ids[split].dtype == object for split in listed):
        for split in listed:
            ids[split] = object_array([str(value) for value in ids[split].tolist()])


def _from_column(part: RawTable, rows: np.ndarray, column: str) -> np.ndarray:
    values = part.table.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    missing = np.flatnonzero(values.is_null().to_numpy())
    if len(missing):
        raise UserError(
            f'{part.name}: row {missing[0]} (from 0) has no id in the column "{column}"; '
            "fill it or name another by --id"
        )
    if pa.types.is_integer(values.type):
        ids = values.to_numpy().astype(np.int64)
    elif is_text(values.type):
        ids = object_array(values.to_pylist())
    else:
        raise UserError(f'{part.name}: the id column "{column}" holds {values.type}; ids are text or whole numbers')
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if (counts > 1).any():
        twice = ids[first[counts > 1].min()]
        places = np.flatnonzero(ids == twice)
        raise UserError(
            f'{part.name}: the id "{twice}" in the column "{column}" stands twice, in rows {places[0]} and {places[1]} '
            '(from 0); name another column by --id, or --id "" for row numbers'
        )
    taken: np.ndarray = ids[rows]
    return taken
