"""Samples in lists that implement the `Samples` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

from cleantune.data import UnreadableImage


@dataclass
class FakeSamples:
    """Images, texts or `UnreadableImage`; `reads` records the indices that were read."""

    items: list[Any]
    kind: str = "image"
    reads: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        content = [x if isinstance(x, str | UnreadableImage) else x.tobytes() for x in self.items]
        return sha256(repr(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def read(self, indices: Sequence[int]) -> list[Any]:
        self.reads.extend(indices)
        return [self.items[i] for i in indices]

    def take(self, indices: np.ndarray) -> FakeSamples:
        return FakeSamples([self.items[i] for i in indices], self.kind)

    def describe(self, index: int) -> str:
        return f"photo {index}"


def fake_images(count: int, size: int = 40, unreadable: Sequence[int] = ()) -> FakeSamples:
    """Random images, some of them unreadable."""
    rng = np.random.default_rng(0)
    pictures: list[Any] = [
        Image.fromarray(rng.integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8)) for i in range(count)
    ]
    for i in unreadable:
        pictures[i] = UnreadableImage("truncated")
    return FakeSamples(pictures)


def fake_texts(count: int) -> FakeSamples:
    """Texts of 0 to 20 words."""
    rng = np.random.default_rng(0)
    return FakeSamples(
        [" ".join(f"w{w}" for w in rng.integers(0, 31, rng.integers(0, 21))) for _ in range(count)], "text"
    )
