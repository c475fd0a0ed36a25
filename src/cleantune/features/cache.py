"""Features of frozen backbones, computed once: content-addressed, in shards on disk, memory-mapped.

A shard is a file that appears whole or not at all, so a killed extraction goes on where it stopped, to the same
bits: batches never cross a shard's border.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, Int

from cleantune.backbones import Backbone, ImagePreprocess
from cleantune.data.image_cache import Progress
from cleantune.data.model_inputs import ModelInputs, maybe_prefetch, raw_inputs, sort_by_length
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.features.encoder import Encoder
from cleantune.features.precision import Precision
from cleantune.functional.standardize import mean_and_std, to_float32
from cleantune.methods.protocol import Inputs, View

SHARD_ROWS = 4096
"""Rows of a shard."""
BATCH = 64
"""Samples of a forward; `batch_size_for` takes more where they are small."""
MAX_BATCH_SIZE = 256
"""Images of a forward at the most."""
ROUNDING = 0.01
"""A shard is kept in float16 where that moves no dimension by more than this share of its standard deviation."""
_OVERFLOWS = 65520
"""Numbers from here on are rounded to infinity in float16."""
Store = Literal["float16", "float32"]
FEATURE_DTYPES = frozenset(get_args(Store))
MAX_OPEN_SHARDS = 1024
"""Shards that are mapped at a time: Linux maps at most 65,530 files into a process, which 268 M rows would need."""


class MemmapShards(Sequence[np.ndarray]):
    """The shards of a folder, each mapped into memory when it is asked for."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        formats: Sequence[Store] | None = None,
        most: int = MAX_OPEN_SHARDS,
    ) -> None:
        """Of these files, whose shapes and formats are known; without formats, all are float32.

        No more than `most` are open at a time.
        """
        self._folder, self._names, self._most = folder, names, most
        self.shapes = [tuple(shape) for shape in shapes]
        self.formats = [np.dtype(name) for name in formats or ["float32"] * len(names)]
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __getitem__(self, k: Any) -> Any:
        """One shard; the one that was asked for longest ago is closed where too many are open."""
        if k in self._open:
            self._open.move_to_end(k)
            return self._open[k]
        self._open[k] = np.load(self._folder / self._names[k], mmap_mode="r", allow_pickle=False)
        if len(self._open) > self._most:
            self._open.popitem(last=False)
        return self._open[k]

    def sequential(self) -> MemmapShards:
        """The same shards, of which the one before is closed: what was read from it counts as memory till then."""
        return MemmapShards(self._folder, self._names, self.shapes, [kind.name for kind in self.formats], most=1)  # type: ignore[misc]

    def whole(self) -> bool:
        """Whether every file is as long as its shape needs."""
        return all(
            (self._folder / name).stat().st_size >= kind.itemsize * rows * width
            for name, (rows, width), kind in zip(self._names, self.shapes, self.formats, strict=True)
        )


class Features:
    """Rows of a sharded array [N, D], read as they are asked for.

    `features[indices]` copies these rows, `np.asarray(features)` all of them.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shards: Sequence[np.ndarray], rows: Int[np.ndarray, " N"], unreadable: dict[int, str]) -> None:
        """Rows by their number in the concatenated shards; `unreadable` is numbered so too."""
        self._shards = shards
        shapes = shards.shapes if isinstance(shards, MemmapShards) else [s.shape for s in shards]
        self._formats = set(shards.formats if isinstance(shards, MemmapShards) else [s.dtype for s in shards])
        self._ends = np.cumsum([0, *(shape[0] for shape in shapes)])
        self._width = int(shapes[0][1])
        self._rows = rows
        self._bad = unreadable

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._rows), self._width

    @property
    def unreadable(self) -> dict[int, str]:
        """Rows without a feature (zeros), by index, with place and reason."""
        return {i: self._bad[row] for i, row in enumerate(self._rows.tolist()) if row in self._bad} if self._bad else {}

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The rows of a slice, of an array of indices or of a mask; one row for a number."""
        rows = np.asarray(self._rows[indices])
        gathered = self._gather(np.atleast_1d(rows))
        return gathered if rows.ndim else gathered.reshape(-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._whole(np.float32).astype(dtype or self.dtype, copy=False)

    @cached_property
    def scale(self) -> tuple[Float[torch.Tensor, " D"], Float[torch.Tensor, " D"]]:
        """Mean and deviation of every dimension (`mean_and_std`): what each head of a run asks for again."""
        return mean_and_std(self)

    @property
    def bytes(self) -> int:
        """As they are stored."""
        return int(self.storage_dtype.itemsize * np.prod(self.shape))

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """float16 where all shards are, else float32."""
        return np.result_type(*self._formats)

    def stored(self) -> np.ndarray:
        """All rows [N, D] in memory, in the format in which they are stored."""
        return self._whole(self.storage_dtype)

    def take(self, indices: Int[np.ndarray, " M"]) -> Features:
        """These rows alone, in this order; nothing is copied."""
        return Features(self._shards, self._rows[indices], self._bad)

    def _whole(self, dtype: Any) -> Float[np.ndarray, "N D"]:
        shards = self._shards.sequential() if isinstance(self._shards, MemmapShards) else self._shards
        return Features(shards, self._rows, {})._gather(self._rows, dtype)

    def _gather(self, rows: Int[np.ndarray, " B"], dtype: Any = np.float32) -> Float[np.ndarray, "B D"]:
        out = np.empty((len(rows), self.shape[1]), dtype)
        shard = np.searchsorted(self._ends, rows, side="right") - 1
        order = np.argsort(shard, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1) if len(rows) else ():
            k = shard[here[0]]
            out[_slice(here)] = self._shards[k][_slice(rows[here] - self._ends[k])]
        return out


def _slice(index: Int[np.ndarray, " B"]) -> slice | Int[np.ndarray, " B"]:
    """A slice in the place of numbers that count up by one: it is copied as a whole."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first == len(index) - 1 and (np.diff(index) == 1).all() else index


class CachedViews:
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
class ViewSpec:
    """Which view of samples is extracted."""

    view: View = "plain"
    number: int = 0
    """Of several views of one kind; each is drawn anew."""

    def of(self, prepared: ModelInputs, rows: list[int], raw: bool = False) -> Inputs:
        """These rows, drawn the same way whenever they are asked for; `raw`: plain images as bytes."""
        index = torch.tensor(rows)
        if self.view == "plain":
            return raw_inputs(prepared, index) if raw else prepared.eval_view(index)
        digest = sha256(f"{self.view} {self.number} {rows[0]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return (prepared.weak_view if self.view == "weak" else prepared.strong_view)(index, generator)


def view_key(key: str, seen: ViewSpec, augment: object) -> str:
    """The name of an augmented view's features beside that of the plain ones: how far it strays belongs to it."""
    return sha256(f"{key} {seen.view} {seen.number} {augment!r}".encode()).hexdigest()[:32]


def features_key(backbone: Backbone, fingerprint: str, precision: Precision, feature_dtype: Store = "float32") -> str:
    """The name of features in a cache: weights, preprocessing, data and precision decide it.

    Args:
        backbone: Its weights as they are now.
        fingerprint: Of the samples.
        precision: In which the backbone computes, and by which program.
        store: Format of the shards.
    """
    preprocess = backbone.preprocess.fingerprint if backbone.preprocess is not None else "ready"
    parts = ["1", backbone.fingerprint, preprocess, fingerprint, precision.fingerprint]
    parts += [str(batch_size_for(backbone, precision)), str(SHARD_ROWS)]
    if feature_dtype != "float32":
        parts.append(feature_dtype)
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def batch_size_for(backbone: Backbone, precision: Precision) -> int:
    """Samples of a forward: of small images as many as have the pixels of `BATCH` of 224 px, where torch computes.

    What a layer costs whatever it is given is a third of 64 small images' forward. OpenVINO divides a batch itself.
    """
    preprocess = backbone.preprocess
    if precision.backend != "torch" or not isinstance(preprocess, ImagePreprocess):
        return BATCH
    return max(BATCH, min(MAX_BATCH_SIZE, BATCH * 224 * 224 // int(np.prod(preprocess.size))))


def find(cache: Path, key: str) -> Features | None:
    """Features that are complete in a cache, or None."""
    folder = cache / f"features-{key}"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        formats = index.get("formats") or ()
        if not FEATURE_DTYPES.issuperset(formats):
            return None
        shards = MemmapShards(folder, index["shards"], index["shapes"], formats)
        unreadable = {int(row): reason for row, reason in index["bad"].items()}
        return Features(shards, np.arange(index["rows"]), unreadable) if shards.whole() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, damaged, or not one of ours
        return None


def extract(
    backbone: Backbone,
    prepared: ModelInputs,
    precision: Precision,
    cache: Path,
    key: str,
    progress: Progress | None = None,
    seen: ViewSpec = ViewSpec(),
    ranks: ProcessGroup = SINGLE_PROCESS,
    feature_dtype: Store = "float32",
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
        ranks: Each makes some of the shards; all see one cache.
        store: Format of the shards; a shard that float16 would change (`ROUNDING`) is kept as float32 all the same.

    Raises:
        UserError: A feature is not finite; the sentence names the sample.
    """
    found = find(cache, key)
    if all(ranks.each(found is not None)):
        assert found is not None
        return found
    _write_shards(cache / f"features-{key}", backbone, prepared, precision, progress, seen, ranks, feature_dtype)
    done = find(cache, key)
    assert done is not None, f"features-{key} in {cache} was written and cannot be read"
    return done


def _write_shards(
    folder: Path,
    backbone: Backbone,
    prepared: ModelInputs,
    precision: Precision,
    progress: Progress | None,
    seen: ViewSpec,
    ranks: ProcessGroup,
    feature_dtype: Store,
) -> None:
    """The shards that are not there yet, and then the index that says they all are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-len(prepared) // SHARD_ROWS))
    training = backbone.training
    backbone.eval()

    program = Encoder(backbone, precision)

    def make(rows: range) -> np.ndarray:
        return extract_shard(backbone, prepared, precision, rows, seen, program)

    def told(k: int, writing: Future[None] | None) -> None:
        if writing is not None:
            writing.result()
        if progress is not None:
            progress(min((k + 1) * SHARD_ROWS, len(prepared)), len(prepared))

    try:
        with ThreadPoolExecutor(1) as writer:
            before: tuple[int, Future[None] | None] | None = None
            for k in range(count)[ranks.rank :: ranks.count]:
                writing = ensure_shard(folder, k, (len(prepared), backbone.width), make, feature_dtype, writer)
                if before is not None:
                    told(*before)
                before = k, writing
            if before is not None:
                told(*before)
    finally:
        backbone.train(training)
    unreadable = {int(row): reason for met in ranks.each(prepared.unreadable) for row, reason in met.items()}
    ranks.first(lambda: write_index(folder, len(prepared), backbone.width, unreadable, feature_dtype))


def ensure_shard(
    folder: Path,
    k: int,
    shape: tuple[int, int],
    make: Callable[[range], np.ndarray],
    feature_dtype: Store,
    writer: Executor | None = None,
) -> Future[None] | None:
    """Make and write a shard, unless it is there.

    The first shard decides whether the others are float16. Of several processes, each that finds none makes it: none
    waits longer than it would for another, and all write the same bytes.

    Args:
        folder: Of the features.
        k: Number of the shard.
        shape: Of all shards together [N, D].
        make: Features [n, D] of rows.
        store: As in `extract`.
        writer: Writes shards but the first while the next one is made.

    Returns:
        The writing that is still to be waited for.

    Raises:
        UserError: The disk is full, or a feature is not finite.
    """
    rows = range(k * SHARD_ROWS, min((k + 1) * SHARD_ROWS, shape[0]))
    if has_shard(folder, k, (len(rows), shape[1])):
        return None
    if feature_dtype == "float16" and k:
        ensure_shard(folder, 0, shape, make, feature_dtype)
    f = make(rows)
    if writer is not None and k:
        return writer.submit(_put_shard, folder, k, shape[1], f, feature_dtype)
    _put_shard(folder, k, shape[1], f, feature_dtype)
    return None


def _put_shard(folder: Path, k: int, width: int, f: Float[np.ndarray, "n D"], feature_dtype: Store) -> None:
    """Write a shard in the format that the first one decides."""
    if feature_dtype == "float16" and (k == 0 or _format(folder, 0, (SHARD_ROWS, width)) == np.float16):
        f = to_float16_if_lossless(f, judge=k == 0)
    write_shard(folder / shard_name(k), f)


def shard_name(k: int) -> str:
    """The file of a shard."""
    return f"{k:06d}.npy"


def write_index(
    folder: Path, rows: int, width: int, unreadable: dict[int, str], feature_dtype: Store = "float32"
) -> None:
    """What says that all shards are there; with a store of float16, also which of them are float32 all the same."""
    count = max(1, -(-rows // SHARD_ROWS))
    shapes = [[min(SHARD_ROWS, rows - k * SHARD_ROWS), width] for k in range(count)]
    names = [shard_name(k) for k in range(count)]
    index: dict[str, Any] = {"rows": rows, "shards": names, "shapes": shapes, "bad": unreadable}
    if feature_dtype == "float16":
        index["formats"] = [str(np.load(folder / name, mmap_mode="r", allow_pickle=False).dtype) for name in names]
    write_shard(folder / "index.json", json.dumps(index).encode())


def to_float16_if_lossless(f: Float[np.ndarray, "n D"], judge: bool = True) -> Float[np.ndarray, "n D"]:
    """The features in float16, or as they are where that would lose what tells them apart.

    Large numbers that hardly vary, or numbers beyond 65,504, are the cases: heads see standardized features.

    Args:
        f: A shard; the first one decides for those after it.
        judge: Look at the deviations, not only for numbers that are too large.
    """
    if not f.size:
        return f
    x = to_float32(f)
    low, high = x.aminmax()
    if not (high < _OVERFLOWS and low > -_OVERFLOWS):  # nor what is not a number
        return f
    half = x.half()
    if judge:
        lost, away = half.float().sub_(x).square_().mean(0), x - x[0]
        mean = away.mean(0)
        variance = away.square_().mean(0).sub_(mean.square_())
        if not ((lost <= ROUNDING**2 * variance) | (variance <= 0)).all():
            return f
    return half.numpy()


def extract_shard(
    backbone: Backbone,
    prepared: ModelInputs,
    precision: Precision,
    rows: range,
    seen: ViewSpec,
    program: Encoder | None = None,
) -> Float[np.ndarray, "n D"]:
    """Features [n, D] of these rows; texts of about one length share a batch."""
    out = np.zeros((len(rows), backbone.width), np.float32)
    order = [i for i in sort_by_length(prepared, rows) if i not in prepared.unreadable]
    size = batch_size_for(backbone, precision)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    program = program or Encoder(backbone, precision)
    made = ((batch, seen.of(prepared, batch, precision.backend == "openvino")) for batch in batches)
    for batch, f in program.stream(maybe_prefetch(made, program.device.type == "cuda")):
        _refuse_non_finite(f.numpy(), batch, prepared)
        out[np.array(batch) - rows.start] = f.numpy()
    for i in prepared.unreadable:  # images decoded on demand show only now that they are bad
        if i in rows:
            out[i - rows.start] = 0
    return out


def _refuse_non_finite(f: Float[np.ndarray, "B D"], batch: list[int], prepared: ModelInputs) -> None:
    # By NumPy: threads of torch would go on spinning on the cores that the network computes on.
    finite = np.isfinite(f).all(1)
    if not finite.all():
        place = prepared.describe(batch[int(finite.argmin())])
        raise UserError(
            f"the model gives a feature that is not finite for {place} ({int((~finite).sum())} of a batch of "
            f"{len(batch)}): try --precision float32, or another model"
        )


def has_shard(folder: Path, k: int, shape: tuple[int, int]) -> bool:
    """Whether a shard is there and whole."""
    return _format(folder, k, shape) is not None


def _format(folder: Path, k: int, shape: tuple[int, int]) -> np.dtype[Any] | None:
    """The format of a shard, or None where it is not there and whole."""
    try:
        shard = np.load(folder / shard_name(k), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return shard.dtype if shard.shape == shape and shard.dtype.name in FEATURE_DTYPES else None


def write_shard(path: Path, content: np.ndarray | bytes) -> None:
    """The whole file, or none of it; two who write the same one at a time write the same bytes.

    Raises:
        UserError: The disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or name another --cache, then --resume"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def evict(cache: Path, key: str) -> None:
    """Remove features from a cache."""
    shutil.rmtree(cache / f"features-{key}", ignore_errors=True)
