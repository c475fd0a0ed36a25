"""A part: one table as it was found, with what its place knows of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleantune.data.arrow_values import Cells
from cleantune.data.dataset import DataKind, Samples
from cleantune.data.images import IMAGE_EXTENSIONS
from cleantune.data.samples import FeatureSamples, ImageSamples, TextSamples, digest_files, digest_matrix
from cleantune.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table and where it comes from."""

    name: str
    """For messages: `data.parquet`."""
    table: pa.Table
    folder: Path = field(default_factory=Path)
    """What relative image paths start from."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes of columns that hold their numbers (Hugging Face's ClassLabel)."""
    identity: str | None = None
    """Stands for the content where hashing that would take too long."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, column: str | None) -> bool:
        """Whether there is such a column."""
        return column is not None and column in self.table.column_names

    def need(self, column: str, flag: str) -> None:
        """Refuse a column that is not there.

        Raises:
            UserError: Naming the nearest column.
        """
        if not self.has(column):
            hint = did_you_mean(column, self.table.column_names)
            raise UserError(f'{self.name} has no column "{column}" (asked for by {flag}){hint}')

    def samples(self, kind: DataKind, column: str) -> Samples:
        """Every row's sample.

        Raises:
            UserError: Where the column cannot hold this kind of sample, no image file exists, or features are
                ragged, missing or not finite.
        """
        values = self.table.column(column)
        rows = np.arange(len(self))
        if kind == "features":
            matrix = feature_matrix(values, self.name, column)
            check_finite(matrix, self.name)
            return FeatureSamples(self.name, self._identity(column) or digest_matrix(matrix), len(self), rows, matrix)
        if kind == "text":
            if not is_text(values.type):
                raise UserError(f'{self.name}: the column "{column}" holds {values.type}, not text')
            cells = Cells(values)
            return TextSamples(self.name, self._identity(column) or cells.digest(), len(self), rows, cells)
        return self._images(column, rows)

    def paths(self, column: str) -> np.ndarray | None:
        """The image files that the rows name, None where they name none: str or None as objects, [N]."""
        values = self.table.column(column)
        if pa.types.is_struct(values.type):
            if "path" not in struct_fields(values.type):
                return None
            values = pc.struct_field(values, "path")
        if not is_text(values.type):
            return None
        return np.array([*values.to_pylist(), None], dtype=object)[:-1]

    def _identity(self, column: str) -> str | None:
        if self.identity is None:
            return None
        return hashlib.sha256(f"{self.identity} {column}".encode()).hexdigest()

    def _images(self, column: str, rows: np.ndarray) -> ImageSamples:
        values = self.table.column(column)
        cells = None
        if pa.types.is_struct(values.type):
            if "bytes" in struct_fields(values.type):
                cells = Cells(pc.struct_field(values, "bytes"))
        elif is_binary(values.type):
            cells = Cells(values)
        elif not is_text(values.type):
            raise UserError(f'{self.name}: the column "{column}" holds {values.type}, not images or their paths')
        paths = self.paths(column)
        base = self._identity(column) or ("" if cells is None else cells.digest())
        in_file = np.ones(len(self), bool) if cells is None else cells.null()
        if paths is not None and in_file.any():
            named = paths[in_file].tolist()
            files, found = digest_files(self.folder, named)
            if not found and in_file.all() and named:
                raise UserError(
                    f'{self.name}: none of the image files that the column "{column}" names exists, the first is '
                    f"looked for at {self.folder / str(named[0])}; paths are relative to the table"
                )
            base = hashlib.sha256(f"{base} {files}".encode()).hexdigest()
        return ImageSamples(self.name, base, len(self), rows, cells, paths, self.folder)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view")


def is_binary(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")


def is_vector(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds lists of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def is_image(kind: pa.DataType) -> bool:
    """Whether an Arrow type can hold images by itself: bytes, or Hugging Face's struct of bytes and path."""
    return is_binary(kind) or bool(pa.types.is_struct(kind) and {"bytes", "path"} & set(struct_fields(kind)))


def has_image_paths(values: pa.ChunkedArray) -> bool:
    """Whether the first strings of a column are names of image files."""
    first = [value for value in values.slice(0, 20).to_pylist() if value]
    return bool(first) and all(Path(value).suffix.lower() in IMAGE_EXTENSIONS for value in first)


def struct_fields(kind: pa.DataType) -> Sequence[str]:
    """Names of a struct's fields."""
    return [kind.field(i).name for i in range(kind.num_fields)]


def feature_matrix(values: pa.ChunkedArray, name: str, column: str) -> np.ndarray:
    """The features of a column of lists: float16 or float32 [N, D], without a copy where they lie in one piece.

    Raises:
        UserError: Naming the row that has no features or another number of them.
    """
    if not is_vector(values.type):
        raise UserError(f'{name}: the column "{column}" holds {values.type}, not lists of numbers')
    missing = np.flatnonzero(values.is_null().to_numpy())
    if len(missing):
        raise UserError(f'{name}: row {missing[0]} has no features in the column "{column}"; leave such rows out')
    widths = pc.list_value_length(values).to_numpy()
    other: np.ndarray = np.flatnonzero(widths != widths[:1])
    if len(other):
        raise UserError(f"{name}: row {other[0]} has {widths[other[0]]} features, row 0 has {widths[0]}")
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in values.chunks if len(chunk)]
    matrix = (flat[0] if len(flat) == 1 else np.concatenate([np.zeros(0, np.float32), *flat])).reshape(len(values), -1)
    return matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)


def check_finite(matrix: np.ndarray, name: str) -> None:
    """Refuse features that are not finite.

    Raises:
        UserError: Naming the first such row and column and how many rows there are.
    """
    unreadable = np.concatenate(
        [np.zeros(0, bool), *(~np.isfinite(matrix[i : i + 65536]).all(1) for i in range(0, len(matrix), 65536))]
    )
    if unreadable.any():
        row = int(unreadable.argmax())
        column = int((~np.isfinite(matrix[row])).argmax())
        raise UserError(
            f"{name}: row {row} (from 0) has a feature that is not finite ({matrix[row, column]} in column {column}), "
            f"{int(unreadable.sum())} of {len(unreadable)} rows do; leave them out or compute them again"
        )
