"""Samples of a table or an array: images, texts and features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Shaped
from PIL.Image import Image

from cleantune.data.dataset import UnreadableImage
from cleantune.data.images import load_image

BLOCK_ROWS = 65536
"""Rows that are hashed at a time."""


@dataclass(frozen=True, eq=False)
class _TableSamples:
    """Selected rows of a table."""

    table_name: str
    """File or object that has the rows, for messages."""
    table_fingerprint: str
    """Fingerprint of all rows of the table."""
    table_size: int
    """Number of rows of the table."""
    rows: Int[np.ndarray, " N"]
    """Row numbers in the table."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Int[np.ndarray, " M"]) -> Self:
        """Return a subset in this order; nothing is copied."""
        return replace(self, rows=self.rows[indices])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content; equal rows of a table have equal fingerprints, however they were taken."""
        if len(self.rows) == self.table_size and np.array_equal(self.rows, np.arange(self.table_size)):
            return self.table_fingerprint
        return hashlib.sha256(self.table_fingerprint.encode() + self.rows.astype(np.int64).tobytes()).hexdigest()

    def describe(self, index: int) -> str:
        """Name the row of a sample for messages; rows count from 0."""
        return f"row {self.rows[index]} of {self.table_name}"


@dataclass(frozen=True, eq=False)
class ImageSamples(_TableSamples):
    """Images whose content is in a column, or whose files a column names."""

    content: pa.ChunkedArray | None
    """Encoded images (binary, null where the row has a path); None if all rows have paths."""
    paths: Shaped[np.ndarray, " size"] | None
    """Path of each row (str or None); None if no row has one."""
    folder: Path
    """Folder that relative paths start from."""
    kind: Literal["image"] = "image"

    def read(self, indices: Sequence[int]) -> list[Image | UnreadableImage]:
        """Decode images to upright RGB with 8 bits per channel."""
        return [self._read(int(self.rows[i])) for i in indices]

    def _read(self, row: int) -> Image | UnreadableImage:
        content = None if self.content is None else self.content[row].as_py()
        if content is not None:
            return load_image(content)
        path = None if self.paths is None else self.paths[row]
        return UnreadableImage("the row has no image") if path is None else load_image(self.folder / path)

    def describe(self, index: int) -> str:
        """Name the file of an image, or the row that contains it."""
        row = int(self.rows[index])
        path = None if self.paths is None else self.paths[row]
        if path is not None and (self.content is None or not self.content[row].is_valid):
            return str(self.folder / path)
        return super().describe(index)


@dataclass(frozen=True, eq=False)
class TextSamples(_TableSamples):
    """Texts of a column; a missing text is read as an empty one."""

    texts: pa.ChunkedArray
    kind: Literal["text"] = "text"

    def read(self, indices: Sequence[int]) -> list[str]:
        """Return texts."""
        return [self.texts[int(self.rows[i])].as_py() or "" for i in indices]

    def count_missing(self) -> int:
        """Count the rows without a text."""
        return int(self.texts.is_null().to_numpy()[self.rows].sum())


@dataclass(frozen=True, eq=False)
class FeatureSamples(_TableSamples):
    """Rows of a feature matrix."""

    matrix: Float[np.ndarray, "size D"]
    kind: Literal["features"] = "features"

    def read(self, indices: Sequence[int]) -> Float[np.ndarray, "B D"]:
        """Return features as float32."""
        features: np.ndarray = self.matrix[self.rows[np.asarray(indices, np.int64)]].astype(np.float32, copy=False)
        return features


def digest_column(column: pa.ChunkedArray) -> str:
    """Return the SHA-256 (hex) of the values of a string or binary column, which does not depend on its chunks."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for batch in pa.table({"": column.cast(pa.large_binary())}).to_batches(max_chunksize=BLOCK_ROWS):
        values = batch.column(0).to_pylist()
        lengths.update(np.array([-1 if value is None else len(value) for value in values], np.int64).tobytes())
        content.update(b"".join(value for value in values if value is not None))
    return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()


def digest_matrix(matrix: Float[np.ndarray, "N D"]) -> str:
    """Return the SHA-256 (hex) of shape, type and values."""
    digest = hashlib.sha256(f"{matrix.shape}{matrix.dtype}".encode())
    for start in range(0, len(matrix), BLOCK_ROWS):
        digest.update(np.ascontiguousarray(matrix[start : start + BLOCK_ROWS]).data)
    return digest.hexdigest()


def digest_files(folder: Path, paths: Sequence[str | None]) -> tuple[str, int]:
    """Return the SHA-256 (hex) of path, size and modification time of each file, and the number of existing files."""
    digest, num_files = hashlib.sha256(), 0
    for path in paths:
        if path is None:
            digest.update(b"\0")
            continue
        try:
            stat = (folder / path).stat()
            state = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
            num_files += 1
        except OSError:
            state = f"{path}\0missing\0"
        digest.update(state.encode("utf-8", "surrogateescape"))
    return digest.hexdigest(), num_files
