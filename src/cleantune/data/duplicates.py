"""Test samples that are exact copies of training samples, which inflate the accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from cleantune.data.dataset import Samples
from cleantune.data.samples import FeatureSamples, ImageSamples, TextSamples


def count_duplicates(train: Samples, test: Samples) -> int:
    """Count the test samples whose content equals that of a training sample; image files are not read."""
    digests = set(_digests(train))
    return sum(digest in digests for digest in _digests(test))


def _digests(samples: Samples) -> Iterator[bytes]:
    """Yield a digest of each sample whose content is in memory."""
    if isinstance(samples, FeatureSamples):
        for row in samples.rows:
            yield _digest(np.ascontiguousarray(samples.matrix[row]).tobytes())
    elif isinstance(samples, TextSamples):
        for row in samples.rows:
            text = samples.texts[int(row)].as_py()
            if text is not None:
                yield _digest(text.encode())
    elif isinstance(samples, ImageSamples) and samples.content is not None:
        for row in samples.rows:
            content = samples.content[int(row)].as_py()
            if content is not None:
                yield _digest(content)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
