"""Decoded images: in memory, in a memory-mapped file, or decoded on demand by threads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, cast
from uuid import uuid4

import numpy as np
import psutil
from jaxtyping import Int, UInt8
from PIL import Image

from cleantune.backbones import ImagePreprocess
from cleantune.data.dataset import Samples, UnreadableImage
from cleantune.distributed.process_group import ProcessGroup

Progress = Callable[[int, int], None]
"""Called with the number of finished samples and of all samples."""

MEMORY_FRACTION = 0.25
"""Pixels and features are kept in memory up to this fraction of the available memory, else in a memory map."""
DISK_FRACTION = 0.5
"""Pixels are cached up to this fraction of the free disk space, else images are decoded at each use."""
BLOCK = 64
"""Images that one thread decodes at a time."""
PREFETCH_BLOCKS = 16
"""Blocks that are decoded ahead of the one in use."""


class PixelStore(Protocol):
    """Pixels of all images of a split, resized and cropped."""

    @property
    def unreadable(self) -> dict[int, str]:
        """Place and reason of each unreadable image found so far, by row."""
        ...

    def read(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the pixels of rows; an unreadable image is black."""
        ...


class ArrayPixels:
    """Pixels in an array or a memory map."""

    def __init__(self, array: UInt8[np.ndarray, "N H W 3"], unreadable: dict[int, str]) -> None:
        self.array = array
        self.unreadable = unreadable

    def read(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the pixels of rows."""
        return np.asarray(self.array[rows])


class Decoder:
    """Decoding at each use, by all cores."""

    def __init__(self, samples: Samples, preprocess: ImagePreprocess) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.unreadable: dict[int, str] = {}
        self.num_threads = os.cpu_count() or 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of all pixels, N x H x W x 3."""
        return (len(self.samples), *self.preprocess.size, 3)

    def read(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Decode rows; an unreadable image is black and recorded."""
        out = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        step = max(1, -(-len(rows) // self.num_threads))
        with ThreadPoolExecutor(self.num_threads) as pool:
            list(pool.map(lambda s: self.fill(out[s : s + step], rows[s : s + step]), range(0, len(rows), step)))
        return out

    def read_all(self, out: UInt8[np.ndarray, "N H W 3"], progress: Progress | None) -> None:
        """Decode all images into `out`."""
        rows = np.arange(len(out))
        with ThreadPoolExecutor(self.num_threads) as pool:
            starts = range(0, len(out), BLOCK)
            blocks = pool.map(lambda s: self.fill(out[s : s + BLOCK], rows[s : s + BLOCK]), starts)
            for num_blocks, _ in enumerate(blocks, start=1):
                if progress is not None:
                    progress(min(num_blocks * BLOCK, len(out)), len(out))

    def fill(self, out: UInt8[np.ndarray, "B H W 3"], rows: Int[np.ndarray, " B"]) -> None:
        """Decode rows into `out` in the calling thread."""
        for k, row in enumerate(rows.tolist()):
            image = self.samples.read([row])[0]
            if isinstance(image, UnreadableImage):
                self.unreadable[row] = f"{self.samples.describe(row)}: {image.reason}"
            else:
                out[k] = self.preprocess.to_array(cast(Image.Image, image))


class LazyPixels:
    """Pixels in memory, which threads decode ahead of their use; images that are never used are not decoded."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.array: UInt8[np.ndarray, "N H W 3"] = np.zeros(decoder.shape, np.uint8)
        self._blocks: list[Future[None] | None] = [None] * -(-len(self.array) // BLOCK)
        self._lock = Lock()
        self._remaining = len(self._blocks)
        self._pool = ThreadPoolExecutor(decoder.num_threads)

    @property
    def unreadable(self) -> dict[int, str]:
        """Place and reason of each unreadable image found so far, by row."""
        return self.decoder.unreadable

    def read(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the pixels of rows and start to decode the blocks after them."""
        if self._remaining and len(rows):
            blocks = np.unique(rows // BLOCK).tolist()
            self._start([*blocks, *range(blocks[-1] + 1, blocks[-1] + 1 + PREFETCH_BLOCKS)])
            for k in blocks:
                self._wait(k)
        pixels: np.ndarray = self.array[rows]
        return pixels

    def finish(self, progress: Progress | None = None) -> None:
        """Decode the remaining images."""
        if not self._remaining:
            return
        for k in range(len(self._blocks)):
            self._start(range(k, k + PREFETCH_BLOCKS))
            self._wait(k)
            if progress is not None:
                progress(min((k + 1) * BLOCK, len(self.array)), len(self.array))

    def __getstate__(self) -> dict[str, Any]:
        """Decode everything for another process, which gets the pixels without threads and locks."""
        self.finish()
        return {"decoder": self.decoder, "array": self.array, "_remaining": 0}

    def _start(self, blocks: Iterable[int]) -> None:
        with self._lock:
            for k in blocks:
                if k < len(self._blocks) and self._blocks[k] is None:
                    self._blocks[k] = self._pool.submit(self._decode, k)

    def _decode(self, k: int) -> None:
        rows = np.arange(k * BLOCK, min((k + 1) * BLOCK, len(self.array)))
        self.decoder.fill(self.array[rows[0] : rows[-1] + 1], rows)
        with self._lock:
            self._remaining -= 1

    def _wait(self, k: int) -> None:
        block = self._blocks[k]
        assert block is not None, "a block is started before it is waited for"
        block.result()


class StreamedPixels:
    """Pixels that threads decode ahead of a pass through the rows in order, and that are not kept.

    Rows in another order are decoded as by a `Decoder`.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._blocks: dict[int, Future[np.ndarray]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(decoder.num_threads)

    @property
    def unreadable(self) -> dict[int, str]:
        """Place and reason of each unreadable image found so far, by row."""
        return self.decoder.unreadable

    def read(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the pixels of rows, start to decode the blocks after them and drop those before them."""
        if not len(rows) or (np.diff(rows) != 1).any():
            return self.decoder.read(rows)
        first, last = int(rows[0]) // BLOCK, int(rows[-1]) // BLOCK
        total = -(-len(self.decoder.samples) // BLOCK)
        with self._lock:
            for k in [k for k in self._blocks if k < first]:
                self._blocks.pop(k).cancel()
            for k in range(first, min(last + 1 + PREFETCH_BLOCKS, total)):
                if k not in self._blocks:
                    self._blocks[k] = self._pool.submit(self._decode, k)
            futures = [self._blocks[k] for k in range(first, last + 1)]
        pixels = np.concatenate([future.result() for future in futures])
        start = int(rows[0]) % BLOCK
        return pixels[start : start + len(rows)]

    def __getstate__(self) -> dict[str, Any]:
        return {"decoder": self.decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["decoder"])  # type: ignore[misc]

    def _decode(self, k: int) -> np.ndarray:
        rows = np.arange(k * BLOCK, min((k + 1) * BLOCK, len(self.decoder.samples)))
        out = np.zeros((len(rows), *self.decoder.shape[1:]), np.uint8)
        self.decoder.fill(out, rows)
        return out


def open_pixels(
    samples: Samples,
    preprocess: ImagePreprocess,
    cache: Path,
    progress: Progress | None,
    group: ProcessGroup,
    *,
    lazy: bool,
    keep: bool,
) -> PixelStore:
    """Choose where the pixels of images are kept: in memory, in a file of the cache, or nowhere.

    Args:
        samples: Images.
        preprocess: Preprocessing of the backbone.
        cache: Folder for pixels that do not fit in memory.
        progress: Called with the number of finished samples and of all samples.
        group: Processes of the run; several processes always share a file.
        lazy: Decode images that fit in memory ahead of their use.
        keep: With `lazy`, whether decoded images stay in memory.
    """
    decoder = Decoder(samples, preprocess)
    size = int(np.prod(decoder.shape))
    if group.world_size == 1 and size <= MEMORY_FRACTION * psutil.virtual_memory().available:
        if lazy:
            return LazyPixels(decoder) if keep else StreamedPixels(decoder)
        array = np.zeros(decoder.shape, np.uint8)
        decoder.read_all(array, progress)
        return ArrayPixels(array, decoder.unreadable)
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{samples.fingerprint} {preprocess.fingerprint}".encode()).hexdigest()[:32]
    folder = cache / f"pixels-{key}"
    with group.local_main_process_first():
        if not (folder / "unreadable.json").is_file():
            if size > DISK_FRACTION * psutil.disk_usage(str(cache)).free:
                return decoder
            _write_pixels(folder, decoder, progress)
    unreadable = json.loads((folder / "unreadable.json").read_text(encoding="utf-8"))
    array = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    return ArrayPixels(array, {int(row): reason for row, reason in unreadable.items()})


def _write_pixels(folder: Path, decoder: Decoder, progress: Progress | None) -> None:
    """Decode all images into a file that appears only when it is complete; `unreadable.json` is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"pixels.{uuid4().hex}.tmp"
    try:
        pixels = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=decoder.shape)
        decoder.read_all(pixels, progress)
        pixels.flush()
        draft.replace(folder / "pixels.npy")
    finally:
        draft.unlink(missing_ok=True)
    draft = folder / f"unreadable.{uuid4().hex}.tmp"
    draft.write_text(json.dumps(decoder.unreadable), encoding="utf-8")
    draft.replace(folder / "unreadable.json")
