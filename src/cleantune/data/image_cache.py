"""Pixels of images: decoded by all cores, into memory, into a file, or each time anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, cast
from uuid import uuid4

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cleantune.backbones import ImagePreprocess
from cleantune.data import Samples, UnreadableImage

Progress = Callable[[int, int], None]
"""Told how many of how many samples are done."""

BLOCK = 64
"""Images that one thread prepares at a time; the network waits for the first of them."""
PREFETCH_BLOCKS = 16
"""Blocks that are decoded ahead of the one in use; an interrupted run ends after these."""


class Decoder:
    """Pixels of a split decoded each time they are asked for, by all cores."""

    def __init__(self, samples: Samples, preprocess: ImagePreprocess, unreadable: dict[int, str]) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.unreadable = unreadable
        self.threads = os.cpu_count() or 1

    def decode(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Pixels of these rows; a bad image is black and noted."""
        out = np.zeros((len(rows), *self.preprocess.size, 3), np.uint8)
        step = max(1, -(-len(rows) // self.threads))
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda s: self.fill(out[s : s + step], rows[s : s + step]), range(0, len(rows), step)))
        return out

    def fill(self, out: UInt8[np.ndarray, "B H W 3"], rows: Int[np.ndarray, " B"]) -> None:
        """Write the pixels of these rows into `out`."""
        for k, row in enumerate(rows.tolist()):
            [image] = self.samples.read([row])  # one decoded photo in memory at a time
            if isinstance(image, UnreadableImage):
                self.unreadable[row] = f"{self.samples.describe(row)}: {image.reason}"
            else:
                out[k] = self.preprocess.array(cast(Image.Image, image))


class LazyPixels:
    """Pixels in memory that threads decode ahead of where they are asked for; what nobody asks for is not decoded."""

    def __init__(self, decoder: Decoder, out: UInt8[np.ndarray, "N H W 3"]) -> None:
        """Pixels `out` of all samples of a decoder, empty yet."""
        self.decoder = decoder
        self.out = out
        self._blocks: list[Future[None] | None] = [None] * -(-len(out) // BLOCK)
        self._lock = Lock()
        self._left = len(self._blocks)
        self._pool = ThreadPoolExecutor(decoder.threads)

    def decode(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Pixels of these rows; the blocks after the last of them are begun."""
        if self._left:
            wanted = np.unique(rows // BLOCK).tolist()
            self._begin([*wanted, *range(wanted[-1] + 1, wanted[-1] + 1 + PREFETCH_BLOCKS)] if wanted else [])
            for k in wanted:
                self._wait(k)
        found: np.ndarray = self.out[rows]
        return found

    @property
    def full(self) -> bool:
        """Whether all is decoded."""
        return not self._left

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which gets all pixels and neither threads nor locks."""
        self.finish()
        return {"decoder": self.decoder, "out": self.out, "_left": 0}

    def finish(self, progress: Progress | None = None) -> None:
        """Decode what is left."""
        if not self._left:
            return
        for k in range(len(self._blocks)):
            self._begin(range(k, k + PREFETCH_BLOCKS))
            self._wait(k)
            if progress is not None:
                progress(min((k + 1) * BLOCK, len(self.out)), len(self.out))

    def _begin(self, blocks: Iterable[int]) -> None:
        with self._lock:
            for k in blocks:
                if k < len(self._blocks) and self._blocks[k] is None:
                    self._blocks[k] = self._pool.submit(self._fill, k)

    def _fill(self, k: int) -> None:
        rows = np.arange(k * BLOCK, min((k + 1) * BLOCK, len(self.out)))
        self.decoder.fill(self.out[rows[0] : rows[-1] + 1], rows)
        with self._lock:
            self._left -= 1

    def _wait(self, k: int) -> None:
        block = self._blocks[k]
        assert block is not None, "a block is begun before it is waited for"
        block.result()


class StreamedPixels:
    """Pixels that threads decode ahead of where they are asked for, and that nobody keeps: fresh memory is dear.

    Who goes through the rows in their order finds them ready; rows in another order are decoded as by a `Decoder`.
    """

    def __init__(self, decoder: Decoder) -> None:
        """All samples of a decoder."""
        self.decoder = decoder
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(decoder.threads)

    def decode(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Pixels of these rows; the blocks after them are begun, those before them forgotten."""
        if not len(rows) or (np.diff(rows) != 1).any():
            return self.decoder.decode(rows)
        start, end = int(rows[0]), int(rows[-1]) + 1
        with self._lock:
            for k in [k for k in self._coming if k < start // BLOCK]:
                self._coming.pop(k).cancel()
            last = -(-end // BLOCK)
            for k in range(start // BLOCK, min(last + PREFETCH_BLOCKS, -(-len(self.decoder.samples) // BLOCK))):
                if k not in self._coming:
                    self._coming[k] = self._pool.submit(self._block, k)
            wanted = [self._coming[k] for k in range(start // BLOCK, last)]
        blocks = [block.result() for block in wanted]
        first = start % BLOCK
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[first : first + len(rows)]

    def __getstate__(self) -> dict[str, Any]:
        return {"decoder": self.decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["decoder"])  # type: ignore[misc]

    def _block(self, k: int) -> np.ndarray:
        rows = np.arange(k * BLOCK, min((k + 1) * BLOCK, len(self.decoder.samples)))
        out = np.zeros((len(rows), *self.decoder.preprocess.size, 3), np.uint8)
        self.decoder.fill(out, rows)
        return out


def write_pixels(final: Path, shape: tuple[int, ...], decoder: Decoder, progress: Progress | None) -> None:
    """The pixel file under a name of this process, and under its own once it is whole."""
    final.mkdir(parents=True, exist_ok=True)
    draft = final / f"pixels.{uuid4().hex}.tmp"
    try:
        pixels = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
        decode_all(decoder, pixels, progress)
        pixels.flush()
        draft.replace(final / "pixels.npy")
    finally:
        draft.unlink(missing_ok=True)
    note = final / f"bad.{uuid4().hex}.tmp"
    note.write_text(json.dumps(decoder.unreadable), encoding="utf-8")
    note.replace(final / "bad.json")


def decode_all(decoder: Decoder, out: UInt8[np.ndarray, "N H W 3"], progress: Progress | None) -> None:
    """Write the pixels of all samples into `out`."""
    rows = np.arange(len(out))
    with ThreadPoolExecutor(decoder.threads) as pool:
        starts = range(0, len(out), BLOCK)
        work = pool.map(lambda s: decoder.fill(out[s : s + BLOCK], rows[s : s + BLOCK]), starts)
        for done, _ in enumerate(work, start=1):
            if progress is not None:
                progress(min(done * BLOCK, len(out)), len(out))
