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
from cleantune.data import Bad, Samples

Progress = Callable[[int, int], None]
"""Told how many of how many samples are done."""

BLOCK = 256
"""Images or texts that one thread prepares at a time."""
AHEAD = 16
"""Blocks that are decoded ahead of the one in use; an interrupted run ends after these."""


class Decoder:
    """Pixels of a split decoded each time they are asked for, by all cores."""

    def __init__(self, samples: Samples, preprocess: ImagePreprocess, bad: dict[int, str]) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.bad = bad
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
        for k, image in enumerate(self.samples.read(rows.tolist())):
            row = int(rows[k])
            if isinstance(image, Bad):
                self.bad[row] = f"{self.samples.describe(row)}: {image.reason}"
            else:
                out[k] = self.preprocess.array(cast(Image.Image, image))


class Filling:
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
            self._begin([*wanted, *range(wanted[-1] + 1, wanted[-1] + 1 + AHEAD)] if wanted else [])
            for k in wanted:
                self._wait(k)
        found: np.ndarray = self.out[rows]
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which gets all pixels and neither threads nor locks."""
        self.finish()
        return {"decoder": self.decoder, "out": self.out, "_left": 0}

    def finish(self, progress: Progress | None = None) -> None:
        """Decode what is left."""
        if not self._left:
            return
        for k in range(len(self._blocks)):
            self._begin(range(k, k + AHEAD))
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
    note.write_text(json.dumps(decoder.bad), encoding="utf-8")
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
