"""Features on disk in shards: files that appear completely or not at all, so that a killed writer can resume."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from cleantune.functional.standardize import to_float32
from cleantune.storage.files import atomic_write

FeatureDtype = Literal["float16", "float32"]
FEATURE_DTYPES = frozenset(get_args(FeatureDtype))
SHARD_ROWS = 4096
"""Rows of a shard."""
MAX_ROUNDING_ERROR = 0.01
"""Largest root mean square error of float16, as a fraction of a dimension's standard deviation, for it to be used."""
MAX_OPEN_SHARDS = 1024
"""Shards that are mapped at a time: Linux maps at most 65,530 files into a process, which 268 million rows exceed."""
_FLOAT16_OVERFLOW = 65520
"""Absolute value from which on float16 rounds to infinity."""


class MemmapShards(Sequence[np.ndarray]):
    """The shards of a folder; each is mapped into memory when it is first read."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[FeatureDtype] | None = None,
        max_open: int = MAX_OPEN_SHARDS,
    ) -> None:
        """Describe files without opening them.

        Args:
            folder: Folder of the files.
            names: File names, in the order of the rows.
            shapes: Rows and dimensions of each file.
            dtypes: Number format of each file; None if all are float32.
            max_open: Files that are mapped at a time.
        """
        self._folder, self._names, self._max_open = folder, names, max_open
        self.shapes = [tuple(shape) for shape in shapes]
        self.dtypes = [np.dtype(name) for name in dtypes or ["float32"] * len(names)]
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __getitem__(self, k: Any) -> Any:
        """Return a shard; the least recently used one is closed if too many are open."""
        if k in self._open:
            self._open.move_to_end(k)
            return self._open[k]
        self._open[k] = np.load(self._folder / self._names[k], mmap_mode="r", allow_pickle=False)
        if len(self._open) > self._max_open:
            self._open.popitem(last=False)
        return self._open[k]

    def sequential(self) -> MemmapShards:
        """Return the same shards, of which one is open at a time: pages of a mapped file count as memory."""
        return MemmapShards(self._folder, self._names, self.shapes, [d.name for d in self.dtypes], max_open=1)  # type: ignore[misc]

    def is_complete(self) -> bool:
        """Return whether every file is as long as its shape requires."""
        return all(
            (self._folder / name).stat().st_size >= dtype.itemsize * rows * width
            for name, (rows, width), dtype in zip(self._names, self.shapes, self.dtypes, strict=True)
        )


def shard_name(k: int) -> str:
    """Return the file name of shard k."""
    return f"{k:06d}.npy"


def num_shards(rows: int) -> int:
    """Return the number of shards of so many rows; at least one."""
    return max(1, -(-rows // SHARD_ROWS))


def shard_rows(k: int, rows: int) -> range:
    """Return the rows of shard k out of so many rows."""
    return range(k * SHARD_ROWS, min((k + 1) * SHARD_ROWS, rows))


def ensure_shard(
    folder: Path,
    k: int,
    shape: tuple[int, int],
    compute: Callable[[range], np.ndarray],
    dtype: FeatureDtype,
    writer: Executor | None = None,
) -> Future[None] | None:
    """Compute and write a shard unless its file is complete.

    The first shard decides whether the others are float16. Each of several processes that finds no first shard computes
    it: none waits longer than it would for another, and all write the same bytes.

    Args:
        folder: Folder of the features.
        k: Number of the shard.
        shape: Rows and dimensions of all shards together.
        compute: Returns the features [n, D] of a range of rows.
        dtype: Preferred number format; a shard that float16 would change is kept in float32.
        writer: Writes shards other than the first in the background.

    Returns:
        The pending write, if any.

    Raises:
        UserError: The disk is full, or a feature is not finite.
    """
    rows = shard_rows(k, shape[0])
    if has_shard(folder, k, (len(rows), shape[1])):
        return None
    if dtype == "float16" and k:
        ensure_shard(folder, 0, shape, compute, dtype)
    f = compute(rows)
    if writer is not None and k:
        return writer.submit(_write_in_dtype, folder, k, shape[1], f, dtype)
    _write_in_dtype(folder, k, shape[1], f, dtype)
    return None


def has_shard(folder: Path, k: int, shape: tuple[int, int]) -> bool:
    """Return whether the file of a shard is complete."""
    return _stored_dtype(folder, k, shape) is not None


def write_index(
    folder: Path, rows: int, width: int, unreadable: dict[int, str], dtype: FeatureDtype = "float32"
) -> None:
    """Write the index, which marks the shards of a folder as complete.

    Args:
        folder: Folder of the features.
        rows: Number of rows.
        width: Number of dimensions.
        unreadable: Reasons by row, of samples without a feature.
        dtype: Preferred number format; for float16 the index lists the format of each shard.
    """
    names = [shard_name(k) for k in range(num_shards(rows))]
    shapes = [[len(shard_rows(k, rows)), width] for k in range(len(names))]
    index: dict[str, Any] = {"rows": rows, "shards": names, "shapes": shapes, "unreadable": unreadable}
    if dtype == "float16":
        index["dtypes"] = [str(np.load(folder / name, mmap_mode="r", allow_pickle=False).dtype) for name in names]
    write_shard(folder / "index.json", json.dumps(index).encode())


def to_float16_if_lossless(f: Float[np.ndarray, "n D"], *, compare: bool = True) -> Float[np.ndarray, "n D"]:
    """Return features in float16, or unchanged where the rounding would matter.

    It matters for dimensions that hardly vary around a large value, since heads see standardized features, and for
    values beyond the range of float16.

    Args:
        f: Features in float32.
        compare: Compare the rounding error with the standard deviations, not only the values with the range.
    """
    if not f.size:
        return f
    x = to_float32(f)
    low, high = x.aminmax()
    if not (high < _FLOAT16_OVERFLOW and low > -_FLOAT16_OVERFLOW):  # nor values that are not numbers
        return f
    half = x.half()
    if compare:
        error = half.float().sub_(x).square_().mean(0)
        variance = (x - x[0]).var(0, correction=0)
        if not ((error <= MAX_ROUNDING_ERROR**2 * variance) | (variance <= 0)).all():
            return f
    return half.numpy()


def write_shard(path: Path, content: np.ndarray | bytes) -> None:
    """Write a file atomically; two writers of one file write the same bytes.

    Raises:
        UserError: The disk is full.
    """
    with atomic_write(path, option="--cache") as draft, draft.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content, allow_pickle=False)


def _write_in_dtype(folder: Path, k: int, width: int, f: Float[np.ndarray, "n D"], dtype: FeatureDtype) -> None:
    """Write a shard in the number format that the first one decides."""
    if dtype == "float16" and (k == 0 or _stored_dtype(folder, 0, (SHARD_ROWS, width)) == np.float16):
        f = to_float16_if_lossless(f, compare=k == 0)
    write_shard(folder / shard_name(k), f)


def _stored_dtype(folder: Path, k: int, shape: tuple[int, int]) -> np.dtype[Any] | None:
    """Return the number format of a shard, or None if its file is not complete."""
    try:
        shard = np.load(folder / shard_name(k), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return shard.dtype if shard.shape == shape and shard.dtype.name in FEATURE_DTYPES else None
