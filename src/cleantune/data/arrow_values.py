"""Values of an Arrow column one by one, without copying the column and from any number of threads."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from jaxtyping import Int


class Cells:
    """A string or binary column; `cells[i]` is a view of the value's bytes, None where it is null."""

    def __init__(self, column: pa.ChunkedArray):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not any(test(column.type) for test in _PLAIN):
            column = column.cast(pa.large_binary())
        self._chunks = [_Chunk(chunk) for chunk in column.chunks if len(chunk)]
        sizes = [len(chunk.null) for chunk in self._chunks]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> memoryview | None:
        k = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._chunks[k].value(int(index - self._starts[k]))

    def null(self) -> np.ndarray:
        """Which values are missing: bool [N]."""
        return np.concatenate([np.zeros(0, bool), *(chunk.null for chunk in self._chunks)])

    def digest(self) -> str:
        """SHA-256 (hex) of all values, whatever the chunks they lie in."""
        sizes, content = hashlib.sha256(), hashlib.sha256()
        for chunk in self._chunks:
            sizes.update(np.where(chunk.null, -1, np.diff(chunk.offsets)).astype(np.int64).tobytes())
            content.update(chunk.data[chunk.offsets[0] : chunk.offsets[-1]])
        return hashlib.sha256(sizes.digest() + content.digest()).hexdigest()


_PLAIN = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


class _Chunk:
    def __init__(self, chunk: pa.Array):
        large = pa.types.is_large_string(chunk.type) or pa.types.is_large_binary(chunk.type)
        _, offsets, data = chunk.buffers()
        self.offsets: Int[np.ndarray, " N1"] = np.frombuffer(offsets, np.int64 if large else np.int32)[
            chunk.offset : chunk.offset + len(chunk) + 1
        ]
        self.data = memoryview(data) if data is not None else memoryview(b"")
        self.null = chunk.is_null().to_numpy(zero_copy_only=False)

    def value(self, index: int) -> memoryview | None:
        return None if self.null[index] else self.data[self.offsets[index] : self.offsets[index + 1]]
