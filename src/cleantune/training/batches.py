"""Where batches come from: cached features or samples, each as an iterator of (indices, views)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.data.image_cache import MEMORY_FRACTION
from cleantune.data.model_inputs import ModelInputs, maybe_prefetch, raw_inputs, sort_by_length
from cleantune.features.cache import Features
from cleantune.methods.protocol import Inputs, View

BLOCK = 8192
"""Rows of features that are read from the disk at a time."""
GATHERED = 512
"""Rows of features in memory that are gathered by one call; they stay in a processor's cache until they are used."""
Item = tuple[Tensor, tuple[Inputs, ...]]
"""Indices of a batch, and one input per view."""


class BatchSource(Protocol):
    """Samples of a split in batches.

    View k of batch j is drawn from a generator seeded by (seed, j, k): the same arguments give the same bits,
    whoever consumed what before.
    """

    look: int
    """Samples a batch when nothing is learned."""

    def __len__(self) -> int: ...

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """These batches in this order, each with these views.

        Args:
            batches: Indices of each.
            views: Of each sample.
            seed: Of the views' luck.
            prefetch: Make the next batch in a background thread.
        """
        ...

    def order(self) -> Int[Tensor, " N"]:
        """All indices in the order in which a look at them is cheapest: texts by length."""
        ...


class FeatureBatches:
    """Cached features [N, D], or V cached views of each sample [V, N, D], of which the first is the plain one."""

    look = 1024

    def __init__(self, features: Any, strong: int = 0) -> None:
        """Features as a tensor, an array or memory-mapped; they are brought into memory where they fit.

        Args:
            features: [N, D] or [V, N, D].
            strong: So many of the last views are strong, the others weak; 0: all serve as either.
        """
        shape = tuple(features.shape)
        self._views = shape[0] if len(shape) == 3 else 1
        self._strong = strong
        self._count = int(shape[-2])
        self._features = features if isinstance(features, Tensor) else self._in_memory(features, shape)

    @staticmethod
    def _in_memory(features: Any, shape: tuple[int, ...]) -> Any:
        import psutil

        owned = type(features) is np.ndarray
        size = features.nbytes if isinstance(features, Features) else 4 * float(np.prod(shape))
        if owned or size <= MEMORY_FRACTION * psutil.virtual_memory().available:
            if isinstance(features, Features):
                return torch.from_numpy(features.load())
            mapped = not owned or not features.flags.writeable
            return torch.from_numpy(np.array(features, np.float32, copy=True if mapped else None, order="C"))
        return features

    def __len__(self) -> int:
        return self._count

    @property
    def features(self) -> Any:
        """All features as they are held: a tensor in memory, or what was given."""
        return self._features

    @property
    def plain(self) -> Any:
        """The plain view of all samples [N, D]."""
        return self._features if len(self._features.shape) == 2 else self._features[0]

    def order(self) -> Int[Tensor, " N"]:
        """As they lie."""
        return torch.arange(self._count)

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """Features of these batches; views other than plain take cached views at random, each sample its own.

        Two views of one batch are different ones as long as there are enough.
        """
        if self._views == 1 or all(view == "plain" for view in views):
            items = self._in_blocks(batches, len(views))
        else:
            items = ((index, self._of(index, views, seed, j)) for j, index in enumerate(batches))
        return maybe_prefetch(items, prefetch and not isinstance(self._features, Tensor))

    def _in_blocks(self, batches: Iterable[Tensor], views: int) -> Iterator[Item]:
        """Batches whose rows are gathered together."""
        for some in _blocks(batches, GATHERED if isinstance(self._features, Tensor) else BLOCK):
            block = self._rows(self.plain, torch.cat(some))
            for batch, x in zip(some, torch.split(block, [len(batch) for batch in some]), strict=True):
                yield batch, (x,) * views

    def _of(self, index: Tensor, views: Sequence[View], seed: int, j: int) -> tuple[Tensor, ...]:
        casts, out = self._casts(len(index), drawn(seed, j, 0)), []
        used = {"weak": 0, "strong": 0}
        for view in views:
            chosen = torch.zeros_like(index)
            if view != "plain":
                cast, kind = casts[view], view if self._strong else "weak"
                chosen = cast[:, used[kind] % cast.shape[1]]
                used[kind] += 1
            x = torch.empty(len(index), self._features.shape[-1])
            for v in sorted(set(chosen.tolist())):
                x[chosen == v] = self._rows(self._features[v], index[chosen == v])
            out.append(x)
        return tuple(out)

    def _casts(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """For each sample the cached views of each kind, in an order of its own."""
        weak = self._views - 1 - self._strong
        weakly = torch.rand(count, weak, generator=generator).argsort(1) + 1
        if not self._strong:
            return {"weak": weakly, "strong": weakly}
        strongly = torch.rand(count, self._strong, generator=generator).argsort(1) + 1 + weak
        return {"weak": weakly, "strong": strongly}

    @staticmethod
    def _rows(features: Any, index: Tensor) -> Float[Tensor, "B D"]:
        if isinstance(features, Tensor):
            lie = _as_they_lie(index)
            return (features[lie] if lie is not None else features.index_select(0, index)).float()
        index, order = index.sort()  # from the disk in the order in which they lie there
        rows = torch.empty(len(index), features.shape[-1])
        rows[order] = torch.from_numpy(np.asarray(features[index.numpy()], np.float32))
        return rows


def _as_they_lie(index: Tensor) -> slice | None:
    """The rows as a slice, which need not be gathered, if they are one."""
    if not len(index) or int(index[-1]) - int(index[0]) != len(index) - 1:
        return None
    found = slice(int(index[0]), int(index[-1]) + 1)
    return found if torch.equal(index, torch.arange(found.start, found.stop)) else None


def _blocks(batches: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Neighboring batches with about so many rows together."""
    some, rows = [], 0
    for batch in batches:
        some.append(batch)
        rows += len(batch)
        if rows >= size:
            yield some
            some, rows = [], 0
    if some:
        yield some


class SampleBatches:
    """Prepared samples, of which views are made."""

    look = 256

    def __init__(self, prepared: ModelInputs) -> None:
        self.prepared = prepared

    def __len__(self) -> int:
        return len(self.prepared)

    def order(self) -> Int[Tensor, " N"]:
        """Texts by length, images as they lie."""
        return torch.tensor(sort_by_length(self.prepared, range(len(self))), dtype=torch.int64)

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """Yield augmented views of these batches, each freshly drawn."""
        items = ((index, self._of(index, views, seed, j)) for j, index in enumerate(batches))
        return maybe_prefetch(items, prefetch)

    def raw_batches(self, batches: Iterable[Int[Tensor, " B"]]) -> Iterator[tuple[Tensor, Inputs]]:
        """Yield these batches for a network with built-in normalization."""
        return ((index, raw_inputs(self.prepared, index)) for index in batches)

    def _of(self, index: Tensor, views: Sequence[View], seed: int, j: int) -> tuple[Inputs, ...]:
        return tuple(self._view(index, view, seed, j, k) for k, view in enumerate(views))

    def _view(self, index: Tensor, view: View, seed: int, j: int, k: int) -> Inputs:
        if view == "plain":
            return self.prepared.eval_view(index)
        make = self.prepared.weak_view if view == "weak" else self.prepared.strong_view
        return make(index, drawn(seed, j, k))


def drawn(seed: int, batch: int, view: int) -> torch.Generator:
    """The generator of one view of one batch."""
    words = np.random.SeedSequence([seed, batch, view]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
