"""Features in the cache: content-addressed, in shards on disk, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.features import shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.shards import FEATURE_DTYPES, FeatureDtype, MemmapShards
from cleantune.functional.standardize import mean_and_std


class Features:
    """Rows of a sharded array [N, D], which are read when they are indexed.

    `features[indices]` copies these rows, `np.asarray(features)` all of them, as float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[np.ndarray], rows: Int[np.ndarray, " N"], unreadable: dict[int, str]) -> None:
        """Select rows of shards.

        Args:
            parts: Shards [n, D].
            rows: Numbers of the rows in the concatenated shards.
            unreadable: Reasons by row number, of samples without a feature.
        """
        self._shards = parts
        shapes = parts.shapes if isinstance(parts, MemmapShards) else [part.shape for part in parts]
        self._dtypes = set(parts.dtypes if isinstance(parts, MemmapShards) else [part.dtype for part in parts])
        self._ends = np.cumsum([0, *(shape[0] for shape in shapes)])
        self._width = int(shapes[0][1])
        self._rows = rows
        self._unreadable = unreadable

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._rows), self._width

    @property
    def unreadable(self) -> dict[int, str]:
        """Samples without a feature (their rows are zeros): place and reason, by index."""
        if not self._unreadable:
            return {}
        return {i: self._unreadable[row] for i, row in enumerate(self._rows.tolist()) if row in self._unreadable}

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Return the rows of a slice, of an array of indices or of a mask; of a number, its row."""
        rows = np.asarray(self._rows[indices])
        gathered = self._gather(np.atleast_1d(rows))
        return gathered if rows.ndim else gathered.reshape(-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._gather_all(np.float32).astype(dtype or self.dtype, copy=False)

    @cached_property
    def mean_and_std(self) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """Mean and standard deviation of every dimension, which each head of a run asks for."""
        return mean_and_std(self)

    @property
    def nbytes(self) -> int:
        """Size in the number format on disk."""
        return int(self.storage_dtype.itemsize * np.prod(self.shape))

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """Number format on disk: float16 if it is that of all shards, else float32."""
        return np.result_type(*self._dtypes)

    def load(self) -> np.ndarray:
        """Return all rows [N, D] in memory, in the number format on disk."""
        return self._gather_all(self.storage_dtype)

    def take(self, indices: Int[np.ndarray, " M"]) -> Features:
        """Return these rows in this order, without copying them."""
        return Features(self._shards, self._rows[indices], self._unreadable)

    def _gather_all(self, dtype: Any) -> Float[np.ndarray, "N D"]:
        parts = self._shards.sequential() if isinstance(self._shards, MemmapShards) else self._shards
        return Features(parts, self._rows, {})._gather(self._rows, dtype)

    def _gather(self, rows: Int[np.ndarray, " B"], dtype: Any = np.float32) -> Float[np.ndarray, "B D"]:
        out = np.empty((len(rows), self.shape[1]), dtype)
        shard = np.searchsorted(self._ends, rows, side="right") - 1
        order = np.argsort(shard, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1) if len(rows) else ():
            k = shard[group[0]]
            out[_as_slice(group)] = self._shards[k][_as_slice(rows[group] - self._ends[k])]
        return out


def _as_slice(index: Int[np.ndarray, " B"]) -> slice | Int[np.ndarray, " B"]:
    """Return consecutive indices as a slice, which is copied faster; others unchanged."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first == len(index) - 1 and (np.diff(index) == 1).all() else index


class CachedViews:
    """Cached features of several views of the same samples [V, N, D], which are read when they are indexed."""

    dtype = np.dtype(np.float32)

    def __init__(self, views: Sequence[Any]) -> None:
        """Stack views [N, D] of one shape; the plain view comes first."""
        self._views = list(views)

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, N and D."""
        rows, width = self._views[0].shape
        return len(self._views), rows, width

    def __getitem__(self, view: int) -> Any:
        return self._views[view]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(view) for view in self._views]).astype(dtype or self.dtype, copy=False)


def features_key(
    backbone: Backbone, fingerprint: str, backend: InferenceBackend, feature_dtype: FeatureDtype = "float32"
) -> str:
    """Return the name of features in the cache; it depends on weights, preprocessing, data and backend.

    Args:
        backbone: Backbone with its current weights.
        fingerprint: Fingerprint of the samples.
        backend: Program and precision that compute the features.
        feature_dtype: Number format of the shards.
    """
    preprocess = backbone.preprocess.fingerprint if backbone.preprocess is not None else "ready"
    parts = ["2", backbone.fingerprint, preprocess, fingerprint, backend.fingerprint, str(shards.SHARD_ROWS)]
    if feature_dtype != "float32":
        parts.append(feature_dtype)
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def find_features(cache: Path, key: str) -> Features | None:
    """Return features that are complete in the cache, or None."""
    folder = cache / f"features-{key}"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        dtypes = index.get("dtypes") or ()
        if not FEATURE_DTYPES.issuperset(dtypes):
            return None
        mapped = MemmapShards(folder, index["shards"], index["shapes"], dtypes)
        unreadable = {int(row): reason for row, reason in index["unreadable"].items()}
        return Features(mapped, np.arange(index["rows"]), unreadable) if mapped.is_complete() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, damaged, or another program's
        return None
