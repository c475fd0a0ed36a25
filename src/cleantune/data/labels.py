"""Label columns as codes, and the classes that they name."""

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
    """A label column: which of its distinct values stands in each row."""

    column: str
    codes: Int[np.ndarray, " N"]
    """Position in `values`; -1 where the label is missing."""
    values: tuple[Any, ...]
    names: tuple[str, ...]
    """The values as class names."""
    declared: bool
    """Whether the values are numbers of named classes (Hugging Face's ClassLabel)."""

    def used(self, rows: Int[np.ndarray, " M"]) -> dict[str, Any]:
        """Name and value of every label that these rows hold."""
        codes = np.unique(self.codes[rows])
        return {self.names[c]: self.values[c] for c in codes if c >= 0}

    def encode(self, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
        """Numbers of the classes; -1 where the label is missing, -2 where it is none of them."""
        number = {name: c for c, name in enumerate(classes)}
        table = np.array([*(number.get(name, -2) for name in self.names), -1], dtype=np.int64)
        encoded: np.ndarray = table[self.codes]  # code -1 is the last entry
        return encoded


def read_labels(part: RawTable, column: str, notes: list[str]) -> Labels:
    """The labels of a column; null, an empty string, and -1 of a ClassLabel count as missing.

    Raises:
        UserError: For lists of labels and for numbers that are not whole: outside the method.
    """
    values = part.table.column(column)
    place = f'{part.name}: the label column "{column}"'
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise UserError(f"{place} holds lists of labels; cleantune needs one label a row")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _whole(values, place, notes)
    elif pa.types.is_temporal(kind):
        values = values.cast(pa.large_string())
    elif not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{place} holds {kind}; labels must be text, whole numbers or true/false")
    codes, distinct = _codes(values)
    declared = part.class_names.get(column, ())
    if declared and pa.types.is_integer(kind):
        codes, distinct = _drop(codes, distinct, -1)
        beyond = [value for value in distinct if not 0 <= value < len(declared)]
        if beyond:
            raise UserError(f"{place} holds {beyond[0]}, but it declares {len(declared)} classes")
        return Labels(column, codes, tuple(distinct), tuple(declared[value] for value in distinct), True)
    codes, distinct = _drop(codes, distinct, "")
    return Labels(column, codes, tuple(distinct), tuple(map(str, distinct)), False)


def vocabulary(used: dict[str, Any], declared: bool) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Names and values of the classes in their order: numbers by size, declared classes by number, text by alphabet."""
    numbers = declared or all(isinstance(value, int) for value in used.values())
    order = sorted(used, key=(lambda name: used[name]) if numbers else str)
    return tuple(order), tuple(used[name] for name in order)


def unknown_label(labels: Labels, row: int, part: RawTable, classes: Sequence[str]) -> UserError:
    """The sentence for a row whose label is no class of the training rows."""
    name = labels.names[labels.codes[row]]
    return UserError(
        f'{part.name}: row {row} (from 0) has the label "{name}" in the column "{labels.column}", '
        f"which is no class of the training rows{did_you_mean(name, classes)}"
    )


def _codes(values: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    encoded = pc.dictionary_encode(values).unify_dictionaries()
    if not encoded.num_chunks:
        return np.zeros(0, np.int64), []
    codes = [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in encoded.chunks]
    return np.concatenate(codes), encoded.chunk(0).dictionary.to_pylist()


def _drop(codes: np.ndarray, distinct: list[Any], missing: Any) -> tuple[np.ndarray, list[Any]]:
    keep = [value is not None and value != missing for value in distinct]
    table = np.array([*np.where(keep, np.cumsum(keep) - 1, -1), -1], dtype=np.int64)
    return table[codes], [value for value, kept in zip(distinct, keep, strict=True) if kept]


def _whole(values: pa.ChunkedArray, place: str, notes: list[str]) -> pa.ChunkedArray:
    # pandas and numpy turn whole numbers into floats where some are missing; anything else is a regression target.
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    broken = np.flatnonzero(np.isinf(numbers) | (np.isfinite(numbers) & (numbers != np.rint(numbers))))
    if len(broken):
        raise UserError(
            f"{place} holds {numbers[broken[0]]} in row {broken[0]} (from 0), which is no class; cleantune needs "
            "labels that are text or whole numbers"
        )
    notes.append(f"{place} holds floats that are whole numbers; read them as such")
    missing = np.isnan(numbers)
    return pa.chunked_array([pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)])
