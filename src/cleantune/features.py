"""Features of frozen backbones, computed once: content-addressed, in shards on disk, memory-mapped.

A shard is a file that appears whole or not at all, so a killed extraction goes on where it stopped, to the same
bits: batches never cross a shard's border.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.engine import compiled
from cleantune.errors import UserError
from cleantune.inputs import Prepared, PreparedImages, ahead, by_length
from cleantune.pixels import Progress
from cleantune.precision import Precision
from cleantune.records import Inputs, View

SHARD = 4096
"""Rows of a shard."""
BATCH = 64
"""Samples of a forward."""
ROUNDING = 0.01
"""A shard is kept in float16 where that moves no dimension by more than this share of its standard deviation."""
Store = Literal["float16", "float32"]


class Features:
    """Rows of a sharded array [N, D], read as they are asked for.

    `features[indices]` copies these rows, `np.asarray(features)` all of them.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shards: Sequence[np.ndarray], rows: Int[np.ndarray, " N"], bad: dict[int, str]) -> None:
        """Rows by their number in the concatenated shards; `bad` is numbered so too."""
        self._shards = list(shards)
        self._ends = np.cumsum([0, *(len(s) for s in shards)])
        self._rows = rows
        self._bad = bad

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._rows), self._shards[0].shape[1]

    @property
    def bad(self) -> dict[int, str]:
        """Rows without a feature (zeros), by index, with place and reason."""
        return {i: self._bad[row] for i, row in enumerate(self._rows.tolist()) if row in self._bad} if self._bad else {}

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The rows of a slice, of an array of indices or of a mask; one row for a number."""
        rows = np.asarray(self._rows[indices])
        gathered = self._gather(np.atleast_1d(rows))
        return gathered if rows.ndim else gathered.reshape(-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._gather(self._rows).astype(dtype or self.dtype, copy=False)

    @property
    def bytes(self) -> int:
        """As they are stored."""
        return int(self.stored_as.itemsize * np.prod(self.shape))

    @property
    def stored_as(self) -> np.dtype[Any]:
        """float16 where all shards are, else float32."""
        return np.result_type(*(shard.dtype for shard in self._shards))

    def stored(self) -> np.ndarray:
        """All rows [N, D] in memory, in the format in which they are stored."""
        return self._gather(self._rows, self.stored_as)

    def take(self, indices: Int[np.ndarray, " M"]) -> Features:
        """These rows alone, in this order; nothing is copied."""
        return Features(self._shards, self._rows[indices], self._bad)

    def _gather(self, rows: Int[np.ndarray, " B"], dtype: Any = np.float32) -> Float[np.ndarray, "B D"]:
        out = np.empty((len(rows), self.shape[1]), dtype)
        shard = np.searchsorted(self._ends, rows, side="right") - 1
        for k in np.unique(shard):
            here = shard == k
            out[here] = self._shards[k][rows[here] - self._ends[k]]
        return out


class Views:
    """Several cached views of the same samples [V, N, D], each read as it is asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, views: Sequence[Any]) -> None:
        """Views [N, D] of one shape, the plain one first."""
        self._views = list(views)

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, N and D."""
        count, width = self._views[0].shape
        return len(self._views), count, width

    def __getitem__(self, view: int) -> Any:
        return self._views[view]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(view) for view in self._views]).astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Seen:
    """Which view of samples is extracted."""

    view: View = "plain"
    number: int = 0
    """Of several views of one kind; each is drawn anew."""

    def of(self, prepared: Prepared, rows: list[int], raw: bool = False) -> Inputs:
        """These rows, drawn the same way whenever they are asked for; `raw`: plain images as bytes."""
        index = torch.tensor(rows)
        if self.view == "plain":
            return prepared.pixels(index) if raw and isinstance(prepared, PreparedImages) else prepared.plain(index)
        digest = sha256(f"{self.view} {self.number} {rows[0]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return (prepared.weak if self.view == "weak" else prepared.strong)(index, generator)


def view_key(key: str, seen: Seen, augment: object) -> str:
    """The name of an augmented view's features beside that of the plain ones: how far it strays belongs to it."""
    return sha256(f"{key} {seen.view} {seen.number} {augment!r}".encode()).hexdigest()[:32]


def features_key(backbone: Backbone, fingerprint: str, precision: Precision, store: Store = "float32") -> str:
    """The name of features in a cache: weights, preprocessing, data and precision decide it.

    Args:
        backbone: Its weights as they are now.
        fingerprint: Of the samples.
        precision: In which the backbone computes, and by which program.
        store: Format of the shards.
    """
    preprocess = backbone.preprocess.fingerprint if backbone.preprocess is not None else "ready"
    parts = ["1", backbone.fingerprint, preprocess, fingerprint, precision.fingerprint, str(BATCH), str(SHARD)]
    if store != "float32":
        parts.append(store)
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def find(cache: Path, key: str) -> Features | None:
    """Features that are complete in a cache, or None."""
    folder = cache / f"features-{key}"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        shards = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in index["shards"]]
    except (OSError, ValueError):
        return None
    if [list(s.shape) for s in shards] != index["shapes"]:
        return None
    bad = {int(row): reason for row, reason in index["bad"].items()}
    return Features(shards, np.arange(index["rows"]), bad)


def extract(
    backbone: Backbone,
    prepared: Prepared,
    precision: Precision,
    cache: Path,
    key: str,
    progress: Progress | None = None,
    seen: Seen = Seen(),
    store: Store = "float32",
) -> Features:
    """The feature of every sample in one view, from the cache where it holds them.

    Args:
        backbone: Put into evaluation mode for the time and moved nowhere.
        prepared: Samples; bad ones get zeros and are noted in the index.
        precision: In which the backbone computes, and by which program.
        cache: Where features live, by key.
        key: From `features_key`, or `view_key` for an augmented view.
        progress: Told about samples done.
        seen: The view.
        store: Format of the shards; a shard that float16 would change (`ROUNDING`) is kept as float32 all the same.

    Raises:
        UserError: A feature is not finite; the sentence names the sample.
    """
    found = find(cache, key)
    if found is not None:
        return found
    _write_shards(cache / f"features-{key}", backbone, prepared, precision, progress, seen, store)
    done = find(cache, key)
    assert done is not None, f"features-{key} in {cache} was written and cannot be read"
    return done


def _write_shards(
    folder: Path,
    backbone: Backbone,
    prepared: Prepared,
    precision: Precision,
    progress: Progress | None,
    seen: Seen,
    store: Store,
) -> None:
    """The shards that are not there yet, and then the index that says they all are."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{k:06d}.npy" for k in range(max(1, -(-len(prepared) // SHARD)))]
    training = backbone.training
    backbone.eval()
    try:
        for k, name in enumerate(names):
            rows = range(k * SHARD, min((k + 1) * SHARD, len(prepared)))
            if not _whole(folder / name, (len(rows), backbone.width)):
                f = _shard(backbone, prepared, precision, rows, seen)
                if store == "float16" and (k == 0 or np.load(folder / names[0], mmap_mode="r").dtype == np.float16):
                    f = narrowed(f, judge=k == 0)
                _write(folder / name, f)
            if progress is not None:
                progress(rows.stop, len(prepared))
    finally:
        backbone.train(training)
    shapes = [[min(SHARD, len(prepared) - k * SHARD), backbone.width] for k in range(len(names))]
    index = {"rows": len(prepared), "shards": names, "shapes": shapes, "bad": prepared.bad}
    _write(folder / "index.json", json.dumps(index).encode())


def narrowed(f: Float[np.ndarray, "n D"], judge: bool = True) -> Float[np.ndarray, "n D"]:
    """The features in float16, or as they are where that would lose what tells them apart.

    Large numbers that hardly vary, or numbers beyond 65,504, are the cases: heads see standardised features.

    Args:
        f: A shard; the first one decides for those after it.
        judge: Look at the deviations, not only for numbers that are too large.
    """
    with np.errstate(over="ignore"):
        half = f.astype(np.float16)
    if not np.isfinite(half).all():
        return f
    if judge:
        moved, deviation = np.square(half.astype(np.float32) - f).mean(0), f.std(0)
        if not ((np.sqrt(moved) <= ROUNDING * deviation) | (deviation == 0)).all():
            return f
    return half


def _shard(
    backbone: Backbone, prepared: Prepared, precision: Precision, rows: range, seen: Seen
) -> Float[np.ndarray, "n D"]:
    """Features of these rows; texts of about one length share a batch."""
    out = np.zeros((len(rows), backbone.width), np.float32)
    order = [i for i in by_length(prepared, rows) if i not in prepared.bad]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    made = ((batch, seen.of(prepared, batch, precision.engine == "openvino")) for batch in batches)
    for batch, f in _stream(backbone, ahead(made), precision):
        _refuse_non_finite(f, batch, prepared)
        out[np.array(batch) - rows.start] = f.numpy()
    for i in prepared.bad:  # images decoded on demand show only now that they are bad
        if i in rows:
            out[i - rows.start] = 0
    return out


def _stream(
    backbone: Backbone, items: Iterator[tuple[list[int], Inputs]], precision: Precision
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches with their features, by the program of the precision."""
    if precision.engine == "openvino":
        first = next(items, None)
        if first is not None:
            yield from compiled(backbone, first[1], precision).stream(chain([first], items))
        return
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    for batch, x in items:
        with torch.inference_mode():
            f = forward(backbone, x, precision, device).float().cpu()
        yield batch, f


def forward(backbone: Backbone, x: Any, precision: Precision, device: torch.device) -> Float[Tensor, "B D"]:
    """Features of a batch in a precision, on a device."""
    if isinstance(x, Tensor):
        layout = torch.channels_last if precision.channels_last and x.dim() == 4 else torch.contiguous_format
        moved: Any = x.to(device).contiguous(memory_format=layout)
    else:
        moved = {name: value.to(device) for name, value in x.items()}
    with precision.autocast(device.type):
        features: Tensor = backbone(moved)
    return features


def _refuse_non_finite(f: Tensor, batch: list[int], prepared: Prepared) -> None:
    finite = torch.isfinite(f).all(dim=1)
    if not finite.all():
        place = prepared.describe(batch[int((~finite).nonzero()[0])])
        raise UserError(
            f"the model gives a feature that is not finite for {place} ({int((~finite).sum())} of a batch of "
            f"{len(batch)}): try --precision float32, or another model"
        )


def _whole(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).shape == shape)
    except (OSError, ValueError):
        return False


def _write(path: Path, content: np.ndarray | bytes) -> None:
    """The whole file, or none of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def forget(cache: Path, key: str) -> None:
    """Remove features from a cache."""
    shutil.rmtree(cache / f"features-{key}", ignore_errors=True)
