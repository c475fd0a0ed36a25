"""Samples on an Arrow table or an array: images, texts and features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from PIL.Image import Image

from cleantune.data.arrow_values import Cells
from cleantune.data.dataset import UnreadableImage
from cleantune.data.images import load_image


@dataclass(frozen=True, eq=False)
class _Taken:
    """Some rows of a place, by their numbers there."""

    place: str
    """Name of the file or object, for messages."""
    base: str
    """Fingerprint of all rows of the place."""
    size: int
    """Rows of the place."""
    rows: Int[np.ndarray, " N"]
    """Row numbers in the place."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Int[np.ndarray, " M"]) -> Self:
        """These samples alone, in this order; nothing is copied."""
        return replace(self, rows=self.rows[indices])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content; two ways to the same rows of a place give the same."""
        if len(self.rows) == self.size and np.array_equal(self.rows, np.arange(self.size)):
            return self.base
        return hashlib.sha256(self.base.encode() + self.rows.astype(np.int64).tobytes()).hexdigest()

    def describe(self, index: int) -> str:
        """Where the sample stands, for messages; rows count from 0."""
        return f"row {self.rows[index]} of {self.place}"


@dataclass(frozen=True, eq=False)
class ImageSamples(_Taken):
    """Pictures in the cells of a column, or in files that a column names."""

    cells: Cells | None
    paths: Shaped[np.ndarray, " size"] | None
    """str, or None where the picture is in the cell."""
    folder: Path
    """What relative paths start from."""
    kind: Literal["image"] = "image"

    def read(self, indices: Sequence[int]) -> list[Image | UnreadableImage]:
        """The pictures as RGB, 8 bits a channel, turned as their EXIF says."""
        return [self._read(int(self.rows[i])) for i in indices]

    def _read(self, row: int) -> Image | UnreadableImage:
        content = self.cells[row] if self.cells is not None else None
        if content is not None:
            return load_image(content)
        path = self.paths[row] if self.paths is not None else None
        return UnreadableImage("the row holds no image") if path is None else load_image(self.folder / path)

    def describe(self, index: int) -> str:
        """The image's file, or the row of the table it is in."""
        row = int(self.rows[index])
        in_file = self.paths is not None and self.paths[row] is not None
        if in_file and (self.cells is None or self.cells[row] is None):
            return str(self.folder / self.paths[row])  # type: ignore[index]
        return super().describe(index)


@dataclass(frozen=True, eq=False)
class TextSamples(_Taken):
    """Strings of a column; a missing one is empty."""

    cells: Cells
    kind: Literal["text"] = "text"

    def read(self, indices: Sequence[int]) -> list[str]:
        """The texts at these indices."""
        values = (self.cells[int(self.rows[i])] for i in indices)
        return ["" if value is None else str(value, "utf-8") for value in values]

    def missing(self) -> int:
        """How many of the texts are not there."""
        return int(self.cells.null()[self.rows].sum())


@dataclass(frozen=True, eq=False)
class FeatureSamples(_Taken):
    """Rows of a matrix."""

    matrix: Float[np.ndarray, "size D"]
    kind: Literal["features"] = "features"

    def read(self, indices: Sequence[int]) -> Float[np.ndarray, "B D"]:
        """The features at these indices as float32."""
        taken: np.ndarray = self.matrix[self.rows[np.asarray(indices, np.int64)]].astype(np.float32, copy=False)
        return taken


def digest_matrix(matrix: Float[np.ndarray, "N D"]) -> str:
    """SHA-256 (hex) of shape, type and values."""
    digest = hashlib.sha256(f"{matrix.shape}{matrix.dtype}".encode())
    for start in range(0, len(matrix), 65536):
        digest.update(np.ascontiguousarray(matrix[start : start + 65536]).data)
    return digest.hexdigest()


def digest_files(folder: Path, paths: Sequence[str | None]) -> tuple[str, int]:
    """SHA-256 (hex) of path, size and time of change of every file, and how many of them exist."""
    digest, found = hashlib.sha256(), 0
    for path in paths:
        if path is None:
            digest.update(b"\0")
            continue
        try:
            stat = (folder / path).stat()
            place = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
            found += 1
        except OSError:
            place = f"{path}\0missing\0"
        digest.update(place.encode("utf-8", "surrogateescape"))
    return digest.hexdigest(), found
