"""Tables as they are read, before columns are interpreted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleantune.data.dataset import DataKind, Samples
from cleantune.data.images import IMAGE_EXTENSIONS
from cleantune.data.samples import FeatureSamples, ImageSamples, TextSamples, digest_column, digest_files, digest_matrix
from cleantune.errors import UserError, did_you_mean
from cleantune.utils.arrays import object_array


@dataclass(frozen=True, eq=False)
class RawTable:
    """Table with its origin."""

    name: str
    """Name for messages, such as `data.parquet`."""
    table: pa.Table
    folder: Path = field(default_factory=Path)
    """Folder that relative image paths start from."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names of integer columns that are a Hugging Face `ClassLabel`."""
    identity: str | None = None
    """Identity of the content if hashing the content would take too long."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, column: str | None) -> bool:
        """Return whether there is such a column."""
        return column is not None and column in self.table.column_names

    def need(self, column: str, flag: str) -> None:
        """Check that a column exists.

        Args:
            column: Name of the column.
            flag: Option that asks for it, for the message.

        Raises:
            UserError: There is no such column; the message suggests the nearest name.
        """
        if not self.has(column):
            hint = did_you_mean(column, self.table.column_names)
            raise UserError(f'{self.name} has no column "{column}" (asked for by {flag}){hint}')

    def samples(self, kind: DataKind, column: str) -> Samples:
        """Interpret a column as the samples of all rows.

        Raises:
            UserError: The column has another type, no image file exists, or features are ragged, missing or not
                finite.
        """
        values = self.table.column(column)
        rows = np.arange(len(self))
        if kind == "features":
            matrix = feature_matrix(values, self.name, column)
            check_finite(matrix, self.name)
            return FeatureSamples(self.name, self._identity(column) or digest_matrix(matrix), len(self), rows, matrix)
        if kind == "text":
            if not is_text(values.type):
                raise UserError(f'{self.name}: the column "{column}" has the type {values.type}, not text')
            return TextSamples(self.name, self._identity(column) or digest_column(values), len(self), rows, values)
        return self._images(column, rows)

    def paths(self, column: str) -> np.ndarray | None:
        """Return the image path of each row (str or None); None if the column has no paths."""
        values = self.table.column(column)
        if pa.types.is_struct(values.type):
            if "path" not in struct_fields(values.type):
                return None
            values = pc.struct_field(values, "path")
        if not is_text(values.type):
            return None
        return object_array(values.to_pylist())

    def _identity(self, column: str) -> str | None:
        if self.identity is None:
            return None
        return hashlib.sha256(f"{self.identity} {column}".encode()).hexdigest()

    def _images(self, column: str, rows: np.ndarray) -> ImageSamples:
        values = self.table.column(column)
        content = None
        if pa.types.is_struct(values.type):
            if "bytes" in struct_fields(values.type):
                content = pc.struct_field(values, "bytes")
        elif is_binary(values.type):
            content = values
        elif not is_text(values.type):
            raise UserError(f'{self.name}: the column "{column}" has the type {values.type}, not images or their paths')
        paths = self.paths(column)
        fingerprint = self._identity(column) or ("" if content is None else digest_column(content))
        is_file = np.ones(len(self), bool) if content is None else content.is_null().to_numpy()
        if paths is not None and is_file.any():
            files = paths[is_file].tolist()
            digest, num_files = digest_files(self.folder, files)
            if not num_files and is_file.all() and files:
                raise UserError(
                    f'{self.name}: none of the image files that the column "{column}" names exists, the first would be '
                    f"{self.folder / str(files[0])}; paths are relative to the table"
                )
            fingerprint = hashlib.sha256(f"{fingerprint} {digest}".encode()).hexdigest()
        return ImageSamples(self.name, fingerprint, len(self), rows, content, paths, self.folder)


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a string type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view")


def is_binary(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a binary type."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")


def is_vector(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a list of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def is_image(kind: pa.DataType) -> bool:
    """Return whether an Arrow type can contain images: binary, or Hugging Face's struct of bytes and path."""
    return is_binary(kind) or bool(pa.types.is_struct(kind) and {"bytes", "path"} & set(struct_fields(kind)))


def has_image_paths(values: pa.ChunkedArray) -> bool:
    """Return whether the first strings of a column are names of image files."""
    first = [value for value in values.slice(0, 20).to_pylist() if value]
    return bool(first) and all(Path(value).suffix.lower() in IMAGE_EXTENSIONS for value in first)


def struct_fields(kind: pa.DataType) -> Sequence[str]:
    """Return the field names of a struct type."""
    return [kind.field(i).name for i in range(kind.num_fields)]


def feature_matrix(values: pa.ChunkedArray, name: str, column: str) -> np.ndarray:
    """Return the features of a column of lists as float16 or float32 [N, D]; one contiguous chunk is not copied.

    Raises:
        UserError: A row has no features, or another number of them than the first row.
    """
    if not is_vector(values.type):
        raise UserError(f'{name}: the column "{column}" has the type {values.type}, not lists of numbers')
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
    """Check that all features are finite.

    Raises:
        UserError: A feature is not finite; the message has the first such row and column and the number of rows.
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
