"""Whatever a user calls their data, as parts: one table a split, `""` where it is not divided yet."""

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
"""How each kind of file is read, by the end of its name."""


def read(data: Any, notes: list[str], *, labeled: bool = True, cache: str | None = None) -> dict[str, RawTable]:
    """The tables of a path, a Hugging Face name or a Python object, by split.

    Args:
        data: See `DataConfig.data`.
        notes: Gets what is left out.
        labeled: Whether the folders of an image folder are classes.
        cache: Where copies of what lies at an address are kept, as `--cache`.

    Raises:
        UserError: Where there is nothing, nothing readable, or no rows.
    """
    named = isinstance(data, str | Path)
    parts = _read_named(str(data), notes, labeled, cache) if named else _read_object(data, notes)
    for part in parts.values():
        if not len(part):
            raise UserError(f"{part.name} is empty: it has no rows")
    return parts


def read_single_table(
    data: Any, split: str, notes: list[str], *, labeled: bool = True, cache: str | None = None
) -> RawTable:
    """The one table meant by data that is handed over for one split: its part of that name, or all there is.

    Raises:
        UserError: As `read`, and where several parts are there and none has the name.
    """
    parts = read(data, notes, labeled=labeled, cache=cache)
    if split in parts or len(parts) == 1:
        return parts.get(split) or next(iter(parts.values()))
    raise UserError(f"{data} has the splits {', '.join(sorted(parts))}, but no {split}; hand over one table")


def _read_named(name: str, notes: list[str], labeled: bool, cache: str | None) -> dict[str, RawTable]:
    if name.startswith("hf:"):
        return _read_object(_from_hub(name), notes, name)
    path = fetch_to_cache(name, notes, cache_folder(cache)) if is_remote(name) else Path(name)
    if not path.exists():
        raise UserError(f"{name} does not exist{_sibling(path)}")
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _read_object(_from_disk(path), notes, name)
        tables = sorted(file.name for file in path.iterdir() if file.suffix.lower() in READERS)
        if tables and not any(child.is_dir() for child in path.iterdir()):
            raise UserError(f"{path} holds tables, not images in folders; name one of them, as {path / tables[0]}")
        return read_image_folder(path, notes, labeled=labeled)
    if not labeled and path.suffix.lower() in IMAGE_EXTENSIONS:
        return {"": RawTable(name, pa.table({"image": [path.name]}), path.parent)}
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{name}: cannot read files of the kind {path.suffix or 'without a suffix'}; known: {', '.join(READERS)}"
        )
    return {"": reader(path)}


def _sibling(path: Path) -> str:
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
    except Exception as error:  # the hub's client raises dozens of types; each means that the data cannot be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} could not be loaded ({reason}); check the name (hf:OWNER/NAME or hf:OWNER/NAME:CONFIG) and the "
            "network, or hand over a folder written by save_to_disk"
        ) from error


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in as many ways as it has files
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
        f"cannot read data of the type {type(data).__name__}; hand over a path, a datasets.Dataset or DatasetDict, a "
        'pandas frame, a mapping of arrays such as {"features": ..., "label": ...}, or (features, labels)'
    )


def _read_dict(data: Mapping[Any, Any], notes: list[str], name: str) -> dict[str, RawTable]:
    parts: dict[str, RawTable] = {}
    for key, value in data.items():
        split = canonical_split(str(key))
        if split is None or split in parts:
            notes.append(f'left the split "{key}" of {name} out ({len(value)} rows)')
        else:
            parts[split] = table_from_dataset(value, f"{name} ({key})")
    if not parts:
        raise UserError(f"{name} has the splits {', '.join(map(str, data)) or '(none)'}; one must be named train")
    return parts
