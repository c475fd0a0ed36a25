"""Tables from objects in memory: Hugging Face datasets, pandas frames, arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cleantune.data.images import encode_png
from cleantune.data.raw_table import RawTable
from cleantune.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import datasets
    import pandas as pd

LARGE_BYTES = 2 << 30
"""Size in bytes above which files stay on disk and are identified by size and time, not by their content."""

ARRAYS = ("features", "image", "text", "label", "true_label", "id", "split")
"""Names of arrays in a mapping or an .npz file."""


def table_from_dataset(data: Any, name: str) -> RawTable:
    """Convert a `datasets.Dataset`; it stays memory-mapped.

    Raises:
        UserError: The dataset is streamed, so that its rows have no random access.
    """
    import datasets

    if not isinstance(data, datasets.Dataset):
        raise UserError(f"{name} is a {type(data).__name__}; random access is needed, so load it without streaming")
    table = data.with_format("arrow")[:] if len(data) else data.data.table
    names = {
        column: tuple(kind.names) for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    return RawTable(name, table, class_names=names, identity=_identity(data))


def _identity(data: datasets.Dataset) -> str | None:
    files = [Path(file["filename"]).stat() for file in data.cache_files]
    if sum(stat.st_size for stat in files) <= LARGE_BYTES:
        return None
    return " ".join([str(data._fingerprint), *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in files)])


def table_from_frame(frame: pd.DataFrame, name: str) -> RawTable:
    """Convert a pandas frame without its index.

    Raises:
        UserError: A column mixes types; the message names it.
    """
    columns = {}
    for column in frame.columns:
        columns[str(column)] = _array(frame[column], str(column), name)
    return RawTable(name, pa.table(columns))


def table_from_arrays(arrays: Mapping[str, Any], name: str) -> RawTable:
    """Convert arrays of one length.

    Args:
        arrays: Arrays by a name of `ARRAYS`. `features` is [N, D]; `image` is uint8 [N, H, W] or [N, H, W, 3], or a
            list of Pillow images or paths.
        name: Name of the data for messages.

    Raises:
        UserError: A name is unknown, lengths differ, or a shape does not fit.
    """
    columns: dict[str, Any] = {}
    for key, values in arrays.items():
        if key not in ARRAYS:
            raise UserError(f'{name} has an array "{key}"{did_you_mean(key, ARRAYS)}')
        columns[key] = _column(key, values, name)
    sizes = {key: len(values) for key, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"{name}: lengths differ: " + ", ".join(f"{key} has {size} rows" for key, size in sizes.items())
        )
    return RawTable(name, pa.table(columns))


def read_npz(path: Path) -> RawTable:
    """Read embeddings from an .npz file: `features` [N, D], and each other array [N] as a column.

    Raises:
        UserError: As from `table_from_arrays`, or the file is damaged, has pickled objects, or has no `features`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS}
            names = list(file.files)
            others = {key: file[key] for key in names if key not in ARRAYS and len(_shape(file, key)) == 1}
    except Exception as error:  # zipfile, zlib, struct and numpy raise different types
        reason = (
            "it has pickled objects, write plain arrays" if "pickle" in str(error) else str(error).splitlines()[0]
        )
        raise UserError(f"{path} cannot be read: {reason}") from error
    if "features" not in arrays:
        raise UserError(f'{path} has no array "features"{did_you_mean("features", names)}')
    raw = table_from_arrays(arrays, path.name)
    table = raw.table
    for key, values in others.items():
        if len(values) == len(table):
            table = table.append_column(key, _array(values, key, path.name))
    return replace(raw, table=table)


def _shape(file: Any, key: str) -> tuple[int, ...]:
    """Return the shape of an array in an .npz file without reading the array."""
    with file.zip.open(f"{key}.npy") as raw:
        is_version_1 = np.lib.format.read_magic(raw) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_version_1 else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(raw)[0]
    return shape


def _column(key: str, values: Any, name: str) -> pa.Array:
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu().numpy()
    if key == "features":
        matrix = np.asarray(values)
        if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.number):
            raise UserError(
                f"{name}: features have the shape {matrix.shape} of {matrix.dtype}; they must be numbers [N, D]"
            )
        if matrix.dtype not in (np.float16, np.float32):
            matrix = matrix.astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(matrix).reshape(-1)), max(matrix.shape[1], 1)
        )
    if key == "image":
        items = list(values)
        if not items or isinstance(items[0], str | Path | bytes):
            return _array([str(item) if isinstance(item, Path) else item for item in items], key, name)
        return pa.array([_png(item, row, name) for row, item in enumerate(items)], pa.large_binary())
    return _array(values, key, name)


def _png(item: Any, row: int, name: str) -> bytes:
    if isinstance(item, np.ndarray) and (
        item.dtype != np.uint8 or item.ndim not in (2, 3) or item.shape[2:] not in ((), (3,), (4,))
    ):
        raise UserError(
            f"{name}: image {row} has the shape {item.shape} of {item.dtype}; it must be uint8 [H, W] or [H, W, 3]"
        )
    return encode_png(item)


def _array(values: Any, column: str, name: str) -> pa.Array:
    if not isinstance(values, list) and not hasattr(values, "dtype"):
        values = list(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = values.tolist()
    try:
        converted = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f'{name}: the column "{column}" mixes types or has unsupported ones: {str(error).splitlines()[0]}'
        ) from error
    return converted.combine_chunks() if isinstance(converted, pa.ChunkedArray) else converted
