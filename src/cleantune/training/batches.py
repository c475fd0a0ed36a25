"""Sources of batches: cached features or samples, each as an iterator of (indices, views)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.data.image_cache import MEMORY_FRACTION
from cleantune.data.model_inputs import ModelInputs, maybe_prefetch, raw_inputs, sort_by_length
from cleantune.features.cache import Features
from cleantune.methods.protocol import Inputs, View

DISK_BLOCK = 8192
"""Rows of features that are read from the disk at a time."""
MEMORY_BLOCK = 512
"""Rows of features in memory that are gathered by one call; they stay in the cache of a processor until used."""
Item = tuple[Tensor, tuple[Inputs, ...]]
"""Indices of a batch, and one input for each view."""


class BatchSource(Protocol):
    """The samples of a split in batches.

    View k of batch j is drawn from a generator seeded by (seed, j, k): the same arguments give the same bits, whatever
    else was drawn before.
    """

    eval_batch_size: int
    """Samples in a batch of an evaluation pass."""

    def __len__(self) -> int: ...

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """Yield batches with their views.

        Args:
            batches: Indices of each batch, in the order of the pass.
            views: Views of each sample.
            seed: Seed of the augmentations.
            prefetch: Make the next batch in a background thread.
        """
        ...

    def order(self) -> Int[Tensor, " N"]:
        """Return all indices in the order in which an evaluation pass is cheapest: texts by length."""
        ...


@dataclass(frozen=True)
class SplitData:
    """One split: given labels, cached features, and samples where there are any."""

    y: Int[Tensor, " N"]
    features: FeatureBatches
    samples: SampleBatches | None


class FeatureBatches:
    """Cached features [N, D], or V cached views of each sample [V, N, D], of which the first is the plain one."""

    eval_batch_size = 1024

    def __init__(self, features: Any, num_strong: int = 0) -> None:
        """Take features, and load them into memory where they fit.

        Args:
            features: [N, D] or [V, N, D]: a tensor, an array or memory-mapped.
            num_strong: Number of the last views that are strong, the others being weak; 0: all serve as either.
        """
        shape = tuple(features.shape)
        self._num_views = shape[0] if len(shape) == 3 else 1
        self._num_strong = num_strong
        self._count = int(shape[-2])
        self.features = features if isinstance(features, Tensor) else self._in_memory(features, shape)
        """All features: a tensor if they are in memory, otherwise as they were given."""

    @staticmethod
    def _in_memory(features: Any, shape: tuple[int, ...]) -> Any:
        """Return the features as a tensor, or as they are where they do not fit into memory."""
        import psutil

        is_array = type(features) is np.ndarray
        size = features.nbytes if isinstance(features, Features) else 4 * float(np.prod(shape))
        if is_array or size <= MEMORY_FRACTION * psutil.virtual_memory().available:
            if isinstance(features, Features):
                return torch.from_numpy(features.load())
            needs_copy = not is_array or not features.flags.writeable
            return torch.from_numpy(np.array(features, np.float32, copy=True if needs_copy else None, order="C"))
        return features

    def __len__(self) -> int:
        return self._count

    @property
    def plain(self) -> Any:
        """Return the plain view of all samples [N, D]."""
        return self.features if len(self.features.shape) == 2 else self.features[0]

    def order(self) -> Int[Tensor, " N"]:
        """Return all indices in the order of the rows."""
        return torch.arange(self._count)

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """Yield the features of each batch; see `BatchSource`.

        Views other than plain take cached views at random, each sample its own. Two views of one batch are different
        ones as long as there are enough.
        """
        if self._num_views == 1 or all(view == "plain" for view in views):
            items = self._plain_batches(batches, len(views))
        else:
            items = ((index, self._views(index, views, seed, j)) for j, index in enumerate(batches))
        return maybe_prefetch(items, prefetch and not isinstance(self.features, Tensor))

    def _plain_batches(self, batches: Iterable[Tensor], num_views: int) -> Iterator[Item]:
        """Yield batches of plain features, whose rows are gathered by blocks of batches."""
        for group in _group(batches, MEMORY_BLOCK if isinstance(self.features, Tensor) else DISK_BLOCK):
            block = _rows(self.plain, torch.cat(group))
            for batch, x in zip(group, torch.split(block, [len(batch) for batch in group]), strict=True):
                yield batch, (x,) * num_views

    def _views(self, index: Tensor, views: Sequence[View], seed: int, j: int) -> tuple[Tensor, ...]:
        """Return the views of batch j."""
        orders, out = self._view_orders(len(index), view_generator(seed, j, 0)), []
        used = {"weak": 0, "strong": 0}
        for view in views:
            chosen = torch.zeros_like(index)
            if view != "plain":
                order, kind = orders[view], view if self._num_strong else "weak"
                chosen = order[:, used[kind] % order.shape[1]]
                used[kind] += 1
            x = torch.empty(len(index), self.features.shape[-1])
            for v in sorted(set(chosen.tolist())):
                x[chosen == v] = _rows(self.features[v], index[chosen == v])
            out.append(x)
        return tuple(out)

    def _view_orders(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw an order of the cached views of each kind for each of `count` samples."""
        num_weak = self._num_views - 1 - self._num_strong
        weak = torch.rand(count, num_weak, generator=generator).argsort(1) + 1
        if not self._num_strong:
            return {"weak": weak, "strong": weak}
        strong = torch.rand(count, self._num_strong, generator=generator).argsort(1) + 1 + num_weak
        return {"weak": weak, "strong": strong}


class SampleBatches:
    """Samples ready for a backbone, of which views are made."""

    eval_batch_size = 256

    def __init__(self, inputs: ModelInputs) -> None:
        """Take the samples of a split."""
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def order(self) -> Int[Tensor, " N"]:
        """Return the indices of texts by length, those of images in the order of the rows."""
        return torch.tensor(sort_by_length(self.inputs, range(len(self))), dtype=torch.int64)

    def batches(
        self, batches: Iterable[Int[Tensor, " B"]], views: Sequence[View], seed: int, *, prefetch: bool = False
    ) -> Iterator[Item]:
        """Yield views of each batch; see `BatchSource`."""
        items = ((index, self._views(index, views, seed, j)) for j, index in enumerate(batches))
        return maybe_prefetch(items, prefetch)

    def raw_batches(self, batches: Iterable[Int[Tensor, " B"]]) -> Iterator[tuple[Tensor, Inputs]]:
        """Yield batches for a network with built-in normalization."""
        return ((index, raw_inputs(self.inputs, index)) for index in batches)

    def _views(self, index: Tensor, views: Sequence[View], seed: int, j: int) -> tuple[Inputs, ...]:
        """Return the views of batch j."""
        return tuple(self._view(index, view, seed, j, k) for k, view in enumerate(views))

    def _view(self, index: Tensor, view: View, seed: int, j: int, k: int) -> Inputs:
        if view == "plain":
            return self.inputs.eval_view(index)
        augment = self.inputs.weak_view if view == "weak" else self.inputs.strong_view
        return augment(index, view_generator(seed, j, k))


def view_generator(seed: int, batch: int, view: int) -> torch.Generator:
    """Return the generator of one view of one batch."""
    words = np.random.SeedSequence([seed, batch, view]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def _rows(features: Any, index: Tensor) -> Float[Tensor, "B D"]:
    """Return rows of features as float32."""
    if isinstance(features, Tensor):
        rows = _as_slice(index)
        return (features[rows] if rows is not None else features.index_select(0, index)).float()
    index, order = index.sort()  # the disk is read in the order of its rows
    out = torch.empty(len(index), features.shape[-1])
    out[order] = torch.from_numpy(np.asarray(features[index.numpy()], np.float32))
    return out


def _as_slice(index: Tensor) -> slice | None:
    """Return consecutive indices as a slice, which needs no gathering; None for others."""
    if not len(index) or int(index[-1]) - int(index[0]) != len(index) - 1:
        return None
    rows = slice(int(index[0]), int(index[-1]) + 1)
    return rows if torch.equal(index, torch.arange(rows.start, rows.stop)) else None


def _group(batches: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield groups of neighboring batches with at least `size` rows in all."""
    group, rows = [], 0
    for batch in batches:
        group.append(batch)
        rows += len(batch)
        if rows >= size:
            yield group
            group, rows = [], 0
    if group:
        yield group
