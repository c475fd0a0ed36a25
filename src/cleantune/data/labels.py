"""Label columns as integer codes, and the classes that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from cleantune.data.raw_table import RawTable, is_text
from cleantune.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False)
class Labels:
    """Label column in dictionary encoding."""

    column: str
    codes: Int[np.ndarray, " N"]
    """Position of each label in `values`; -1 for a missing label."""
    values: tuple[Any, ...]
    """Distinct labels as they are written."""
    names: tuple[str, ...]
    """Distinct labels as class names."""
    is_class_label: bool
    """True for a Hugging Face `ClassLabel`, whose values are class numbers."""

    def used(self, rows: Int[np.ndarray, " M"]) -> dict[str, Any]:
        """Return the value of each label that occurs in the rows, by class name."""
        codes = np.unique(self.codes[rows])
        return {self.names[c]: self.values[c] for c in codes if c >= 0}

    def encode(self, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
        """Return class numbers; -1 for a missing label, -2 for a label that is no class."""
        number = {name: c for c, name in enumerate(classes)}
        table = np.array([*(number.get(name, -2) for name in self.names), -1], dtype=np.int64)
        encoded: np.ndarray = table[self.codes]  # code -1 selects the last entry
        return encoded


def read_labels(raw: RawTable, column: str, notes: list[str]) -> Labels:
    """Read the labels of a column; null, an empty string, and -1 of a `ClassLabel` are missing labels.

    Raises:
        UserError: The column has lists of labels, or numbers with a fraction.
    """
    values = raw.table.column(column)
    place = f'{raw.name}: the label column "{column}"'
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise UserError(f"{place} contains lists of labels; cleantune needs one label per row")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _cast_to_int(values, place, notes)
    elif pa.types.is_temporal(kind):
        values = values.cast(pa.large_string())
    elif not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{place} has the type {kind}; labels must be text, whole numbers or true/false")
    codes, distinct = _encode_distinct(values)
    class_names = raw.class_names.get(column, ())
    if class_names and pa.types.is_integer(kind):
        codes, distinct = _drop_missing(codes, distinct, -1)
        beyond = [value for value in distinct if not 0 <= value < len(class_names)]
        if beyond:
            raise UserError(f"{place} contains {beyond[0]}, but it declares {len(class_names)} classes")
        return Labels(column, codes, tuple(distinct), tuple(class_names[value] for value in distinct), True)
    codes, distinct = _drop_missing(codes, distinct, "")
    return Labels(column, codes, tuple(distinct), tuple(map(str, distinct)), False)


def sort_classes(used: dict[str, Any], is_class_label: bool) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return names and values of the classes in order: numbers by value, others alphabetically.

    Args:
        used: Value of each class by name.
        is_class_label: Whether the values are class numbers.
    """
    by_value = is_class_label or all(isinstance(value, int) for value in used.values())
    order = sorted(used, key=(lambda name: used[name]) if by_value else str)
    return tuple(order), tuple(used[name] for name in order)


def unknown_label_error(labels: Labels, row: int, raw: RawTable, classes: Sequence[str]) -> UserError:
    """Return the error for a row whose label is no class of the training rows."""
    name = labels.names[labels.codes[row]]
    return UserError(
        f'{raw.name}: row {row} (from 0) has the label "{name}" in the column "{labels.column}", '
        f"which is no class of the training rows{did_you_mean(name, classes)}"
    )


def _encode_distinct(values: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """Return the code of each value (-1 for null) and the distinct values."""
    encoded = pc.dictionary_encode(values).unify_dictionaries()
    if not encoded.num_chunks:
        return np.zeros(0, np.int64), []
    codes = [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in encoded.chunks]
    return np.concatenate(codes), encoded.chunk(0).dictionary.to_pylist()


def _drop_missing(codes: np.ndarray, distinct: list[Any], missing: Any) -> tuple[np.ndarray, list[Any]]:
    """Recode a value that denotes a missing label as -1."""
    keep = [value is not None and value != missing for value in distinct]
    table = np.array([*np.where(keep, np.cumsum(keep) - 1, -1), -1], dtype=np.int64)
    return table[codes], [value for value, kept in zip(distinct, keep, strict=True) if kept]


def _cast_to_int(values: pa.ChunkedArray, place: str, notes: list[str]) -> pa.ChunkedArray:
    """Cast floats to integers: pandas and NumPy convert integers with missing values to floats.

    Raises:
        UserError: A number has a fraction: a regression target, not a class.
    """
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    broken = np.flatnonzero(np.isinf(numbers) | (np.isfinite(numbers) & (numbers != np.rint(numbers))))
    if len(broken):
        raise UserError(
            f"{place} contains {numbers[broken[0]]} in row {broken[0]} (from 0), which is no class; cleantune needs "
            "labels that are text or whole numbers"
        )
    notes.append(f"{place} has floats that are whole numbers; they are read as integers")
    missing = np.isnan(numbers)
    return pa.chunked_array([pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)])
