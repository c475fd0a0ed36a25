"""Rows and their samples: what the rest of the project sees of data, wherever it came from."""

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
    """Stands in the place of an image that cannot be read."""

    reason: str


class Samples(Protocol):
    """Images, texts or features by their index; reading is thread-safe and changes nothing."""

    @property
    def kind(self) -> DataKind:
        """What `read` gives: `image` RGB pictures, `text` strings, `features` float32 [B, D]."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content, or of path, size and time of the files; the same rows give the same."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Image | UnreadableImage] | list[str] | np.ndarray:
        """The samples at these indices, in this order."""
        ...

    def take(self, indices: Int[np.ndarray, " M"]) -> Samples:
        """These samples alone, in this order; nothing is copied."""
        ...

    def describe(self, index: int) -> str:
        """Where the sample stands, for messages: `photos/cat/1.jpg` or `row 17 of data.parquet` (rows from 0)."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples with their ids and given labels. True labels are not here and cannot be reached from here."""

    ids: Shaped[np.ndarray, " N"]
    """int64, or str as objects."""
    y: Int[np.ndarray, " N"]
    """Given labels 0..C-1; -1 where there is none."""
    samples: Samples

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Int[np.ndarray, " M"]) -> Rows:
        """These rows alone, in this order."""
        return Rows(self.ids[indices], self.y[indices], self.samples.take(indices))


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of one data set."""

    kind: DataKind
    classes: tuple[str, ...]
    """Names of the classes, in the order of y."""
    class_values: tuple[Any, ...]
    """The labels as they were written (int, str or bool), in the order of y."""
    rows: dict[str, Rows]
    """`train`, and `validation`, `test`, `unlabeled` where there are any."""
    truth: dict[str, Int[np.ndarray, " N"]]
    """True labels of the splits that have them, aligned with `rows`; -1 where one is not known."""
    notes: tuple[str, ...]
    """Guesses made and things done, for the user to read."""
    fingerprint: str
    """SHA-256 (hex) of ids, labels and samples of every split."""


def compute_fingerprint(classes: Sequence[str], rows: dict[str, Rows], truth: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) of everything a run can depend on."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in sorted(rows):
        part = rows[split]
        ids = part.ids.tobytes() if part.ids.dtype != object else "\0".join(part.ids).encode()
        for piece in (split.encode(), ids, part.y.tobytes(), part.samples.fingerprint.encode()):
            digest.update(hashlib.sha256(piece).digest())
        if split in truth:
            digest.update(hashlib.sha256(truth[split].tobytes()).digest())
    return digest.hexdigest()
