"""Readers of all input formats: paths, addresses, Hugging Face names and Python objects become tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cleantune.data.folders import read_image_folder
from cleantune.data.images import IMAGE_EXTENSIONS
from cleantune.data.in_memory import read_npz, table_from_arrays, table_from_dataset, table_from_frame
from cleantune.data.raw_table import RawTable
from cleantune.data.remote import fetch_to_cache, is_remote
from cleantune.data.splits import canonical_split
from cleantune.data.tables import read_csv, read_jsonl, read_parquet
from cleantune.errors import UserError, did_you_mean
from cleantune.storage.files import cache_folder

READERS: dict[str, Callable[[Path], RawTable]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".npz": read_npz,
}
"""Reader of each file format, by extension."""


def read_tables(data: Any, notes: list[str], *, labeled: bool = True, cache: str | None = None) -> dict[str, RawTable]:
    """Read the tables of a path, an address, a Hugging Face name or a Python object.

    Args:
        data: Data in any form that `DataConfig.data` takes.
        notes: Receives messages for the user.
        labeled: Whether the folders of an image folder are classes.
        cache: Folder for copies of remote data, as `--cache`.

    Returns:
        Tables by split; one under the key `""` if the data have no splits.

    Raises:
        UserError: There are no data, they cannot be read, or they have no rows.
    """
    is_path = isinstance(data, str | Path)
    tables = _read_path(str(data), notes, labeled, cache) if is_path else _read_object(data, notes)
    for raw in tables.values():
        if not len(raw):
            raise UserError(f"{raw.name} is empty: it has no rows")
    return tables


def read_single_table(
    data: Any, split: str, notes: list[str], *, labeled: bool = True, cache: str | None = None
) -> RawTable:
    """Read the table of one split: the only table, or the one with the name of the split.

    Args:
        data: Data in any form that `DataConfig.data` takes.
        split: Name of the split.
        notes: Receives messages for the user.
        labeled: Whether the folders of an image folder are classes.
        cache: Folder for copies of remote data, as `--cache`.

    Raises:
        UserError: As from `read_tables`, or none of several tables has the name.
    """
    tables = read_tables(data, notes, labeled=labeled, cache=cache)
    if split in tables or len(tables) == 1:
        return tables.get(split) or next(iter(tables.values()))
    raise UserError(f"{data} has the splits {', '.join(sorted(tables))}, but no {split}; pass one table")


def _read_path(name: str, notes: list[str], labeled: bool, cache: str | None) -> dict[str, RawTable]:
    if name.startswith("hf:"):
        return _read_object(_from_hub(name), notes, name)
    path = fetch_to_cache(name, notes, cache_folder(cache)) if is_remote(name) else Path(name)
    if not path.exists():
        raise UserError(f"{name} does not exist{_path_hint(path)}")
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _read_object(_from_disk(path), notes, name)
        tables = sorted(file.name for file in path.iterdir() if file.suffix.lower() in READERS)
        if tables and not any(child.is_dir() for child in path.iterdir()):
            raise UserError(f"{path} contains tables, not images in folders; name one of them, as {path / tables[0]}")
        return read_image_folder(path, notes, labeled=labeled)
    if not labeled and path.suffix.lower() in IMAGE_EXTENSIONS:
        return {"": RawTable(name, pa.table({"image": [path.name]}), path.parent)}
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{name}: cannot read files of the kind {path.suffix or 'without a suffix'}; known: {', '.join(READERS)}"
        )
    return {"": reader(path)}


def _path_hint(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" and neither does its folder {folder}"
    hint = did_you_mean(path.name, [p.name for p in folder.iterdir() if p.suffix == path.suffix])
    return hint if hint.startswith("; did") else "; check the path"


def _from_hub(name: str) -> Any:
    import datasets

    repo, _, config = name.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(repo, config or None)
    except Exception as error:  # the client of the hub raises dozens of types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} could not be loaded ({reason}); check the name (hf:OWNER/NAME or hf:OWNER/NAME:CONFIG) and the "
            "network, or pass a folder written by save_to_disk"
        ) from error


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder raises many types
        raise UserError(
            f"{path} is no readable dataset folder ({str(error).splitlines()[0]}); write it again by save_to_disk"
        ) from error


def _read_object(data: Any, notes: list[str], name: str = "the data") -> dict[str, RawTable]:
    import datasets
    import pandas as pd

    if isinstance(data, datasets.Dataset):
        return {"": table_from_dataset(data, name)}
    if isinstance(data, datasets.DatasetDict):
        return _read_dict(data, notes, name)
    if isinstance(data, pd.DataFrame):
        return {"": table_from_frame(data, name)}
    if isinstance(data, tuple) and len(data) == 2:
        return {"": table_from_arrays({"features": data[0], "label": data[1]}, name)}
    if isinstance(data, Mapping):
        return {"": table_from_arrays(data, name)}
    raise UserError(
        f"cannot read data of the type {type(data).__name__}; pass a path, a datasets.Dataset or DatasetDict, a "
        'pandas frame, a mapping of arrays such as {"features": ..., "label": ...}, or (features, labels)'
    )


def _read_dict(data: Mapping[Any, Any], notes: list[str], name: str) -> dict[str, RawTable]:
    tables: dict[str, RawTable] = {}
    for key, value in data.items():
        split = canonical_split(str(key))
        if split is None or split in tables:
            notes.append(f'left the split "{key}" of {name} out ({len(value)} rows)')
        else:
            tables[split] = table_from_dataset(value, f"{name} ({key})")
    if not tables:
        raise UserError(f"{name} has the splits {', '.join(map(str, data)) or '(none)'}; one must be named train")
    return tables
