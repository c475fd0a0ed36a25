"""Network inputs of a split: images decoded once, texts tokenized once, and their views on demand."""

from __future__ import annotations

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
from cleantune.data.augmentation import augment_images, drop_tokens
from cleantune.data.dataset import Samples
from cleantune.data.image_cache import LazyPixels, PixelStore, Progress, open_pixels
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.methods.protocol import Inputs

T = TypeVar("T")
TOKENIZER_BATCH = 256
"""Texts that are tokenized at a time."""


class ModelInputs(Protocol):
    """Samples of one split in the form that a network takes.

    A view takes sample indices and, except for the evaluation view, a generator as its only source of randomness.
    """

    @property
    def unreadable(self) -> dict[int, str]:
        """Place and reason of each unreadable sample, by index; its inputs are zeros."""
        ...

    @property
    def lengths(self) -> Int[np.ndarray, " N"] | None:
        """Number of tokens of each text; None for images."""
        ...

    def __len__(self) -> int: ...

    def eval_view(self, indices: Int[Tensor, " B"]) -> Inputs:
        """Return inputs with evaluation preprocessing."""
        ...

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Inputs:
        """Return inputs with weak augmentation."""
        ...

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Inputs:
        """Return inputs with strong augmentation."""
        ...

    def take(self, indices: Int[np.ndarray, " M"]) -> ModelInputs:
        """Return a subset in this order; nothing is copied."""
        ...

    def describe(self, index: int) -> str:
        """Name the file or row of a sample for messages."""
        ...


class ImageInputs:
    """Images as uint8 pixels [N, H, W, 3], in memory, in a memory map, or decoded on demand."""

    lengths: Int[np.ndarray, " N"] | None = None

    def __init__(
        self,
        samples: Samples,
        preprocess: ImagePreprocess,
        store: PixelStore,
        augmentation: ImageAugmentation,
        rows: Int[np.ndarray, " N"] | None = None,
    ) -> None:
        """Select rows of a pixel store.

        Args:
            samples: Images in the order of the store.
            preprocess: Preprocessing of the backbone.
            store: Decoded pixels.
            augmentation: Strength of the augmentations.
            rows: Selected rows of the store; None: all.
        """
        self.preprocess = preprocess
        self.augmentation = augmentation
        self._samples = samples
        self._store = store
        self._rows = np.arange(len(samples)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def unreadable(self) -> dict[int, str]:
        """Place and reason of each unreadable image, by index; of those decoded so far if decoding is lazy."""
        reasons = self._store.unreadable
        return {i: reasons[row] for i, row in enumerate(self._rows.tolist()) if row in reasons} if reasons else {}

    def pixels(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B 3 H W"]:
        """Return resized and cropped pixels in channels-last memory format."""
        return torch.from_numpy(self._store.read(self._rows[indices.numpy()])).permute(0, 3, 1, 2)

    def finish(self, progress: Progress | None = None) -> None:
        """Decode the remaining images if decoding is lazy."""
        if isinstance(self._store, LazyPixels):
            self._store.finish(progress)

    def eval_view(self, indices: Int[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
        """Return normalized pixels."""
        return self.preprocess.normalize(self.pixels(indices))

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """Return normalized pixels after a random flip and affine map."""
        pixels = augment_images(self.pixels(indices), "weak", self.augmentation, generator)
        return self.preprocess.normalize(pixels)

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """Return normalized pixels after RandAugment and the weak augmentation."""
        pixels = augment_images(self.pixels(indices), "strong", self.augmentation, generator)
        return self.preprocess.normalize(pixels)

    def take(self, indices: Int[np.ndarray, " M"]) -> ImageInputs:
        """Return a subset in this order; nothing is copied."""
        return ImageInputs(self._samples, self.preprocess, self._store, self.augmentation, self._rows[indices])

    def describe(self, index: int) -> str:
        """Name the file or row of an image for messages."""
        return self._samples.describe(int(self._rows[index]))


class TextInputs:
    """Texts as token ids without padding, concatenated in one array."""

    def __init__(
        self,
        samples: Samples,
        preprocess: TextPreprocess,
        tokens: Int[Tensor, " total"],
        offsets: Int[Tensor, " n+1"],
        augmentation: TextAugmentation,
        rows: Int[np.ndarray, " N"] | None = None,
    ) -> None:
        """Select rows of tokenized texts.

        Args:
            samples: Texts in the order of the tokens.
            preprocess: Preprocessing of the backbone.
            tokens: Token ids of all texts.
            offsets: Text r is `tokens[offsets[r] : offsets[r + 1]]`.
            augmentation: Strength of the augmentations.
            rows: Selected texts; None: all.
        """
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.unreadable: dict[int, str] = {}
        self._samples = samples
        self._tokens = tokens
        self._offsets = offsets
        self._rows = np.arange(len(samples)) if rows is None else rows
        self.lengths: Int[np.ndarray, " N"] | None = offsets.diff().numpy()[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def eval_view(self, indices: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """Return token ids and attention mask, padded to the longest text of the batch."""
        return self._inputs(*self._pad(indices))

    def weak_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the texts without a few random tokens."""
        return self._drop(indices, self.augmentation.weak, generator)

    def strong_view(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the texts without many random tokens."""
        return self._drop(indices, self.augmentation.strong, generator)

    def take(self, indices: Int[np.ndarray, " M"]) -> TextInputs:
        """Return a subset in this order; nothing is copied."""
        rows = self._rows[indices]
        return TextInputs(self._samples, self.preprocess, self._tokens, self._offsets, self.augmentation, rows)

    def describe(self, index: int) -> str:
        """Name the row of a text for messages."""
        return self._samples.describe(int(self._rows[index]))

    def _pad(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(self._rows)[indices]
        start, length = self._offsets[rows], self._offsets[rows + 1] - self._offsets[rows]
        position = torch.arange(max(1, int(length.max())))
        mask = position < length[:, None]
        index = (start[:, None] + position).clamp(max=len(self._tokens) - 1)
        return self._tokens[index].long().masked_fill(~mask, self.preprocess.pad_id), mask

    def _drop(self, indices: Tensor, rate: float, generator: torch.Generator) -> dict[str, Tensor]:
        tokens, mask = self._pad(indices)
        fixed = torch.isin(tokens, self.preprocess.special_ids)
        return self._inputs(*drop_tokens(tokens, mask, fixed, rate, generator))

    def _inputs(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        mask = mask.long()
        mask[:, 0] = 1  # a text without tokens: attention over nothing gives NaN
        return {"input_ids": tokens.masked_fill(mask == 0, self.preprocess.pad_id), "attention_mask": mask}


def make_model_inputs(
    samples: Samples,
    preprocess: Preprocess,
    cache: Path,
    progress: Progress | None = None,
    augmentation: ImageAugmentation | TextAugmentation | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    lazy: bool = False,
    keep: bool = True,
) -> ModelInputs:
    """Convert samples to the inputs that a network takes.

    Args:
        samples: Images or texts.
        preprocess: Preprocessing of the backbone.
        cache: Folder for pixels that do not fit in memory; they are decoded once.
        progress: Called with the number of finished samples and of all samples.
        augmentation: Strength of the augmentations; None: the default.
        group: Processes of the run; those of one machine share one file of pixels.
        lazy: Decode images that fit in memory in background threads, ahead of their use. Unreadable images are known
            only after they were decoded.
        keep: With `lazy`, whether decoded images stay in memory.

    Raises:
        UserError: The modality of the samples is not that of the backbone.
    """
    if isinstance(preprocess, ImagePreprocess) and samples.kind == "image":
        store = open_pixels(samples, preprocess, cache, progress, group, lazy=lazy, keep=keep)
        settings = augmentation if isinstance(augmentation, ImageAugmentation) else ImageAugmentation()
        return ImageInputs(samples, preprocess, store, settings)
    if isinstance(preprocess, TextPreprocess) and samples.kind == "text":
        tokens, offsets = _tokenize(samples, preprocess, progress)
        text_settings = augmentation if isinstance(augmentation, TextAugmentation) else TextAugmentation()
        return TextInputs(samples, preprocess, tokens, offsets, text_settings)
    modality = "images" if isinstance(preprocess, ImagePreprocess) else "texts"
    raise UserError(f"the data are of the kind {samples.kind}, but the model takes {modality}: choose another model")


def _tokenize(samples: Samples, preprocess: TextPreprocess, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """Tokenize all texts and return the tokens, with one padding token at the end, and the offsets of the texts."""
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(samples), TOKENIZER_BATCH):
        texts = samples.read(range(start, min(start + TOKENIZER_BATCH, len(samples))))
        batch = preprocess.tokens(cast(list[str], texts))
        lengths += [len(row) for row in batch]
        ids.append(np.fromiter((token for row in batch for token in row), np.int32))
        if progress is not None:
            progress(min(start + TOKENIZER_BATCH, len(samples)), len(samples))
    tokens = torch.from_numpy(np.concatenate([*ids, np.full(1, preprocess.pad_id, np.int32)]))
    return tokens, torch.tensor([0, *lengths]).cumsum(0)


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield the items while a background thread makes the next one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        item = pool.submit(next, iterator, end).result()
        while item is not end:
            future = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
            item = future.result()


def maybe_prefetch(items: Iterable[T], enabled: bool) -> Iterator[T]:
    """Prefetch the items if enabled: for a GPU. On a CPU the consumer already uses all cores."""
    return prefetch(items) if enabled else iter(items)


def raw_inputs(inputs: ModelInputs, indices: Int[Tensor, " B"]) -> Inputs:
    """Return inputs for a network with built-in normalization: uint8 pixels [B, 3, H, W], else the evaluation view."""
    return inputs.pixels(indices) if isinstance(inputs, ImageInputs) else inputs.eval_view(indices)


def sort_by_length(inputs: ModelInputs, rows: Sequence[int]) -> list[int]:
    """Sort texts by their number of tokens, so that batches need little padding; images keep their order."""
    lengths = inputs.lengths
    if lengths is None:
        return list(rows)
    return sorted(rows, key=lambda i: (int(lengths[i]), i))


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move inputs to a device; to a GPU asynchronously from pinned memory."""
    if isinstance(inputs, Tensor):
        pinned = inputs.pin_memory() if device.type == "cuda" and not inputs.is_cuda else inputs
        return pinned.to(device, non_blocking=True)
    return {name: cast(Tensor, to_device(value, device)) for name, value in inputs.items()}
