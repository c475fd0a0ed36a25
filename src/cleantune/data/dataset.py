"""Splits, rows and samples: the interface of the data to the rest of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, Shaped

if TYPE_CHECKING:
    from PIL.Image import Image

DataKind = Literal["image", "text", "features"]


class UnreadableImage(NamedTuple):
    """Placeholder of an image that cannot be read."""

    reason: str


class Samples(Protocol):
    """Images, texts or features; reading is thread-safe."""

    @property
    def kind(self) -> DataKind:
        """Modality: `image` for RGB images, `text` for strings, `features` for float32 vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content, or of path, size and modification time of image files."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Image | UnreadableImage] | list[str] | np.ndarray:
        """Return samples in the order of the indices."""
        ...

    def take(self, indices: Int[np.ndarray, " M"]) -> Samples:
        """Return a subset in this order; nothing is copied."""
        ...

    def describe(self, index: int) -> str:
        """Name a sample for messages: `photos/cat/1.jpg` or `row 17 of data.parquet` (rows count from 0)."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples with ids and given labels; true labels cannot be reached from here."""

    ids: Shaped[np.ndarray, " N"]
    """Ids: int64, or objects of type str."""
    y: Int[np.ndarray, " N"]
    """Given labels, 0 to C - 1; -1 for a missing label."""
    samples: Samples

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Int[np.ndarray, " M"]) -> Rows:
        """Return a subset in this order."""
        return Rows(self.ids[indices], self.y[indices], self.samples.take(indices))


@dataclass(frozen=True, eq=False)
class Data:
    """Splits of one data set."""

    kind: DataKind
    classes: tuple[str, ...]
    """Class names in the order of y."""
    class_values: tuple[Any, ...]
    """Labels as they were written (int, str or bool), in the order of y."""
    rows: dict[str, Rows]
    """Rows of `train`, and of `validation`, `test`, `unlabeled` if they exist."""
    truth: dict[str, Int[np.ndarray, " N"]]
    """True labels of splits that have them, aligned with `rows`; -1 for an unknown one."""
    notes: tuple[str, ...]
    """Messages for the user about guesses and omissions."""
    fingerprint: str
    """SHA-256 (hex) of ids, labels and samples of all splits."""


def compute_fingerprint(classes: Sequence[str], rows: dict[str, Rows], truth: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 (hex) of everything that a run depends on."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in sorted(rows):
        part = rows[split]
        ids = part.ids.tobytes() if part.ids.dtype != object else "\0".join(part.ids).encode()
        for content in (split.encode(), ids, part.y.tobytes(), part.samples.fingerprint.encode()):
            digest.update(hashlib.sha256(content).digest())
        if split in truth:
            digest.update(hashlib.sha256(truth[split].tobytes()).digest())
    return digest.hexdigest()
