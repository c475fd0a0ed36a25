"""Model-ready samples: pixels decoded once, texts tokenized once, and their views on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cleantune.backbones import ImagePreprocess, Preprocess, TextPreprocess
from cleantune.config.augmentation import ImageAugmentation, TextAugmentation
from cleantune.data import Samples
from cleantune.data.augmentation import augment_images, drop_tokens
from cleantune.data.image_cache import Decoder, LazyPixels, Progress, StreamedPixels, decode_all, write_pixels
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.methods.protocol import Inputs

T = TypeVar("T")
MEMORY_FRACTION = 0.25
"""Pixels and features live in memory while they fit in this share of what is free, else in a memory map."""
TOKENIZER_BATCH = 256
"""Texts that are tokenized at a time."""
DISK_FRACTION = 0.5
"""Pixels are cached while they fit in this share of the free disk, else images are decoded each time."""


class ModelInputs(Protocol):
    """Samples of one split, ready for a network.

    Views take the indices of rows and, but for `plain`, a generator that is their only source of chance.
    """

    @property
    def unreadable(self) -> dict[int, str]:
        """Rows that could not be read, by index, with place and reason; their inputs are zeros."""
        ...

    @property
    def lengths(self) -> Int[np.ndarray, " N"] | None:
        """Tokens of each text, by which batches are made alike; None for images."""
        ...

    @property
    def ready(self) -> bool:
        """Whether inputs are made of what lies in memory, decoded."""
        ...

    def __len__(self) -> int: ...

    def eval_view(self, indices: Int[Tensor, " B"]) -> Inputs:
        """Evaluation preprocessing."""
        ...

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Inputs:
        """A view close by."""
        ...

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Inputs:
        """A view far off."""
        ...

    def take(self, indices: Int[np.ndarray, " M"]) -> ModelInputs:
        """These rows alone, in this order; nothing is copied."""
        ...

    def describe(self, index: int) -> str:
        """Where the sample stands, for messages."""
        ...


class ImageInputs:
    """Images as uint8 pixels [N, H, W, 3], in memory, in a memory map, or decoded on demand."""

    lengths: Int[np.ndarray, " N"] | None = None

    def __init__(
        self,
        samples: Samples,
        preprocess: ImagePreprocess,
        store: UInt8[np.ndarray, "n H W 3"] | Decoder | LazyPixels | StreamedPixels,
        rows: Int[np.ndarray, " N"],
        unreadable: dict[int, str],
        augment: ImageAugmentation,
    ) -> None:
        """Rows of a store; `unreadable` and `samples` are numbered as the store."""
        self.preprocess = preprocess
        self.augment = augment
        self._samples = samples
        self._store = store
        self._rows = rows
        self._bad = unreadable

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def unreadable(self) -> dict[int, str]:
        """Rows that could not be read; where images are decoded on demand, those met so far."""
        return {i: self._bad[row] for i, row in enumerate(self._rows.tolist()) if row in self._bad} if self._bad else {}

    @property
    def ready(self) -> bool:
        """Whether all pixels lie in memory."""
        return self._store.full if isinstance(self._store, LazyPixels) else type(self._store) is np.ndarray

    def pixels(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B 3 H W"]:
        """Resized and cropped pixels; the strides are those of channels-last."""
        rows = self._rows[indices.numpy()]
        block = self._store[rows] if isinstance(self._store, np.ndarray) else self._store.decode(rows)
        return torch.from_numpy(np.asarray(block)).permute(0, 3, 1, 2)

    def finish(self, progress: Progress | None = None) -> None:
        """Decode what has not been asked for yet, where pixels are decoded ahead."""
        if isinstance(self._store, LazyPixels):
            self._store.finish(progress)

    def eval_view(self, indices: Int[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
        """Normalized pixels."""
        return self.preprocess.inputs(self.pixels(indices))

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """Mirrored and warped a little, then normalized."""
        return self.preprocess.inputs(augment_images(self.pixels(indices), "weak", self.augment, generator), own=True)

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """The weak view after RandAugment."""
        return self.preprocess.inputs(augment_images(self.pixels(indices), "strong", self.augment, generator), own=True)

    def take(self, indices: Int[np.ndarray, " M"]) -> ImageInputs:
        """These rows alone, in this order; nothing is copied."""
        return ImageInputs(self._samples, self.preprocess, self._store, self._rows[indices], self._bad, self.augment)

    def describe(self, index: int) -> str:
        """Where the image stands."""
        return self._samples.describe(int(self._rows[index]))


class TextInputs:
    """Texts as token ids, without padding, in one long array."""

    ready = True

    def __init__(
        self,
        samples: Samples,
        preprocess: TextPreprocess,
        tokens: Int[Tensor, " total"],
        ends: Int[Tensor, " n+1"],
        rows: Int[np.ndarray, " N"],
        augment: TextAugmentation,
    ) -> None:
        """Rows of the long array: text r is `tokens[ends[r] : ends[r + 1]]`."""
        self.preprocess = preprocess
        self.augment = augment
        self.unreadable: dict[int, str] = {}
        self._samples = samples
        self._tokens = tokens
        self._ends = ends
        self._rows = rows
        self.lengths: Int[np.ndarray, " N"] | None = (ends[1:] - ends[:-1]).numpy()[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def eval_view(self, indices: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """Tokens and mask, padded to the longest of the batch."""
        return self._inputs(*self._padded(indices))

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> dict[str, Tensor]:
        """A few tokens left out."""
        return self._dropped(indices, self.augment.weak, generator)

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> dict[str, Tensor]:
        """Many tokens left out."""
        return self._dropped(indices, self.augment.strong, generator)

    def take(self, indices: Int[np.ndarray, " M"]) -> TextInputs:
        """These rows alone, in this order; nothing is copied."""
        return TextInputs(self._samples, self.preprocess, self._tokens, self._ends, self._rows[indices], self.augment)

    def describe(self, index: int) -> str:
        """Where the text stands."""
        return self._samples.describe(int(self._rows[index]))

    def _padded(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(self._rows)[indices]
        start, length = self._ends[rows], self._ends[rows + 1] - self._ends[rows]
        place = torch.arange(max(1, int(length.max())))
        mask = place < length[:, None]
        where = (start[:, None] + place).clamp(max=len(self._tokens) - 1)
        return self._tokens[where].long().masked_fill(~mask, self.preprocess.pad_id), mask

    def _dropped(self, indices: Tensor, rate: float, generator: torch.Generator) -> dict[str, Tensor]:
        tokens, mask = self._padded(indices)
        fixed = torch.isin(tokens, self.preprocess.special_ids)
        return self._inputs(*drop_tokens(tokens, mask, fixed, rate, generator))

    def _inputs(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        mask = mask.long()
        mask[:, 0] = 1  # a text without a single token: attention over nothing is not a number
        return {"input_ids": tokens.masked_fill(mask == 0, self.preprocess.pad_id), "attention_mask": mask}


def make_model_inputs(
    samples: Samples,
    preprocess: Preprocess,
    cache: Path,
    progress: Progress | None = None,
    augment: ImageAugmentation | TextAugmentation | None = None,
    ranks: ProcessGroup = SINGLE_PROCESS,
    *,
    lazy: bool = False,
    keep: bool = True,
) -> ModelInputs:
    """Samples in the form the network takes.

    Args:
        samples: Images or texts.
        preprocess: The backbone's.
        cache: A folder for pixels that do not fit in a quarter of the free memory; they are decoded once.
        progress: Told about samples done.
        augment: How far views stray; the default of their kind where None.
        ranks: Several on one machine share one file of pixels.
        lazily: Images that fit in memory are decoded by threads ahead of where they are used; which of them are bad is
            known only of those that were.
        keep: Whether such images stay in memory, or are decoded again where they are asked for again.

    Raises:
        UserError: The kinds of samples and preprocessing differ.
    """
    if isinstance(preprocess, ImagePreprocess) and samples.kind == "image":
        chosen = augment if isinstance(augment, ImageAugmentation) else ImageAugmentation()
        return _prepare_images(samples, preprocess, cache, progress, chosen, ranks, lazy, keep)
    if isinstance(preprocess, TextPreprocess) and samples.kind == "text":
        chosen_text = augment if isinstance(augment, TextAugmentation) else TextAugmentation()
        return _prepare_texts(samples, preprocess, progress, chosen_text)
    takes = "images" if isinstance(preprocess, ImagePreprocess) else "texts"
    raise UserError(f"the data are of the kind {samples.kind}, but the model takes {takes}: choose another model")


def _prepare_images(
    samples: Samples,
    preprocess: ImagePreprocess,
    cache: Path,
    progress: Progress | None,
    augment: ImageAugmentation,
    ranks: ProcessGroup,
    lazy: bool,
    keep: bool,
) -> ImageInputs:
    import psutil

    unreadable: dict[int, str] = {}
    shape = (len(samples), *preprocess.size, 3)
    size, rows = int(np.prod(shape)), np.arange(len(samples))
    if ranks.count == 1 and size <= MEMORY_FRACTION * psutil.virtual_memory().available:
        decoder = Decoder(samples, preprocess, unreadable)
        if lazy:
            ready = LazyPixels(decoder, np.zeros(shape, np.uint8)) if keep else StreamedPixels(decoder)
            return ImageInputs(samples, preprocess, ready, rows, unreadable, augment)
        pixels = np.zeros(shape, np.uint8)
        decode_all(decoder, pixels, progress)
        return ImageInputs(samples, preprocess, pixels, rows, unreadable, augment)
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{samples.fingerprint} {preprocess.fingerprint}".encode()).hexdigest()[:32]
    final = cache / f"pixels-{key}"
    with ranks.local_main_process_first():
        there = (final / "bad.json").is_file()
        if not there and size <= DISK_FRACTION * psutil.disk_usage(str(cache)).free:
            write_pixels(final, shape, Decoder(samples, preprocess, unreadable), progress)
            there = True
    if not there:
        return ImageInputs(samples, preprocess, Decoder(samples, preprocess, unreadable), rows, unreadable, augment)
    stored = json.loads((final / "bad.json").read_text(encoding="utf-8"))
    pixels = np.load(final / "pixels.npy", mmap_mode="r", allow_pickle=False)
    return ImageInputs(samples, preprocess, pixels, rows, {int(k): v for k, v in stored.items()}, augment)


def _prepare_texts(
    samples: Samples, preprocess: TextPreprocess, progress: Progress | None, augment: TextAugmentation
) -> TextInputs:
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(samples), TOKENIZER_BATCH):
        texts = samples.read(range(start, min(start + TOKENIZER_BATCH, len(samples))))
        block = preprocess.tokens(cast(list[str], texts))
        lengths += [len(row) for row in block]
        ids.append(np.fromiter((token for row in block for token in row), np.int32))
        if progress is not None:
            progress(min(start + TOKENIZER_BATCH, len(samples)), len(samples))
    tokens = torch.from_numpy(np.concatenate([*ids, np.full(1, preprocess.pad_id, np.int32)]))
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return TextInputs(samples, preprocess, tokens, ends, np.arange(len(samples)), augment)


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is in use.

    The thread computes alone: a second team of OpenMP or MKL threads on the same cores makes the first one sleep at
    every layer, which halves the speed of training.
    """
    iterator, end = iter(items), object()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        coming = pool.submit(next, iterator, end)
        item = coming.result()
        torch.set_num_threads(threads)  # what threads of the future begin with; each has a number of its own
        while item is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
            item = coming.result()


def maybe_prefetch(items: Iterable[T], prepared: ModelInputs, in_turns: bool) -> Iterator[T]:
    """Batches of prepared samples: each made ahead, or in turns with its use.

    Args:
        items: Made of `prepared` when they are asked for.
        prepared: Where the samples lie.
        in_turns: Whoever uses a batch computes on this processor by all threads that torch has here, and would be
            slowed by a thread beside: what lies in memory is made when it is asked for.
    """
    return iter(items) if in_turns and prepared.ready else prefetch(items)


def raw_inputs(prepared: ModelInputs, indices: Int[Tensor, " B"]) -> Inputs:
    """What a network that normalizes by itself is given: images as uint8 pixels [B, 3, H, W], else the plain view."""
    return prepared.pixels(indices) if isinstance(prepared, ImageInputs) else prepared.eval_view(indices)


def sort_by_length(prepared: ModelInputs, rows: Sequence[int]) -> list[int]:
    """The rows in an order in which texts of one batch are about as long; images stay as they are."""
    lengths = prepared.lengths
    if lengths is None:
        return list(rows)
    return sorted(rows, key=lambda i: (int(lengths[i]), i))


def to_device(x: Inputs, device: torch.device) -> Inputs:
    """The inputs on a device; to a GPU from pinned memory, so that the copy does not wait for what computes there."""
    if isinstance(x, Tensor):
        return (x.pin_memory() if device.type == "cuda" and not x.is_cuda else x).to(device, non_blocking=True)
    return {name: cast(Tensor, to_device(value, device)) for name, value in x.items()}
