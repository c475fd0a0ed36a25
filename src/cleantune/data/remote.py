"""Data on other storage (`s3://`, `gs://`, `https://`, …): copied into the cache once a machine, then local.

Whatever fsspec has a file system for can be read. The copy is named by the address and the state of what lies there, so
data that changed are copied anew, and data that did not are not asked for again. The copy appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from cleantune.errors import UserError


def is_remote(name: str) -> bool:
    """Whether it is an address, not a path."""
    return "://" in name


def fetch_to_cache(address: str, notes: list[str], cache: Path) -> Path:
    """The local copy of a file or folder.

    Args:
        address: As fsspec writes it: `s3://bucket/photos`, `https://host/table.parquet`.
        notes: Gets what was copied.
        cache: Where copies are kept.

    Raises:
        UserError: Nothing is there, it cannot be had, or a package for its protocol is missing.
    """
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(address)
        files = system.find(place, detail=True)
    except Exception as error:  # every storage has errors of its own
        raise UserError(_sentence(address, error)) from error
    if not files:
        raise UserError(f"{address} does not exist or is empty; check the address")
    state = sha256(repr([address, *(_state(system, path, files[path]) for path in sorted(files))]).encode()).hexdigest()
    folder = cache / "remote" / state[:32]
    copy = folder / (Path(place.rstrip("/")).name or "data")
    if not copy.exists():
        _copy(system, place, folder, copy.name, address)
        size = sum(file.get("size") or 0 for file in files.values())
        notes.append(f"copied {address} ({len(files):,} files, {size / 1e6:,.1f} MB) to {copy}")
    return copy


def _state(system: Any, path: str, file: dict[str, Any]) -> tuple[Any, ...]:
    """What changes when the content does: a tag of the storage where it has one, else size and time."""
    tag = next((file[key] for key in ("ETag", "etag", "md5Hash", "md5") if file.get(key)), None)
    if tag is None:
        tag = str(file.get("LastModified") or file.get("mtime") or file.get("created") or system.ukey(path))
    return path, file.get("size"), str(tag)


def _copy(system: Any, place: str, folder: Path, name: str, address: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        if system.isdir(place):
            system.get(place.rstrip("/") + "/", str(draft / name) + "/", recursive=True, callback=_bar(address))
        else:
            system.get_file(place, str(draft / name), callback=_bar(address))
        # Large files are told apart by size and time: the same time on every machine, another where the state is.
        time = int(folder.name[:8], 16)
        for file in draft.rglob("*"):
            os.utime(file, (time, time))
        draft.replace(folder)
    except Exception as error:
        if not (folder / name).exists():  # else another process was quicker
            raise UserError(_sentence(address, error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _bar(address: str) -> Any:
    from fsspec.callbacks import DEFAULT_CALLBACK, TqdmCallback

    return TqdmCallback(tqdm_kwargs={"desc": address, "delay": 2}) if sys.stderr.isatty() else DEFAULT_CALLBACK


def _sentence(address: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{address} does not exist; check the address"
    if isinstance(error, ImportError):  # fsspec says which package to install
        return f"{address} cannot be read: {str(error).splitlines()[0]}"
    if isinstance(error, ValueError) and "Protocol" in str(error):
        return f"{address} cannot be read: no storage is known by {address.partition('://')[0]}://"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{address} could not be copied ({reason}); what was begun is removed, the same command tries again"
