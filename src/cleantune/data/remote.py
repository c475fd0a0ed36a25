"""Remote data (`s3://`, `gs://`, `https://`, …), copied into the cache once per machine.

All file systems of fsspec are supported. A copy is named by the address and the state of the remote files, so that data
are copied again only if they changed. A copy appears only when it is complete.
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
    """Return whether a name is an address, not a path."""
    return "://" in name


def fetch_to_cache(address: str, notes: list[str], cache: Path) -> Path:
    """Copy a remote file or folder into the cache, unless it is there, and return the path of the copy.

    Args:
        address: Address in the form of fsspec: `s3://bucket/photos`, `https://host/table.parquet`.
        notes: Receives messages for the user.
        cache: Folder of the copies.

    Raises:
        UserError: The data do not exist or cannot be read, or a package for the protocol is missing.
    """
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(address)
        files = system.find(place, detail=True)
    except Exception as error:  # each file system has its own errors
        raise UserError(_error_message(address, error)) from error
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
    """Return a value that changes with the content of a file: its tag if the storage has one, else size and time."""
    tag = next((file[key] for key in ("ETag", "etag", "md5Hash", "md5") if file.get(key)), None)
    if tag is None:
        tag = str(file.get("LastModified") or file.get("mtime") or file.get("created") or system.ukey(path))
    return path, file.get("size"), str(tag)


def _copy(system: Any, place: str, folder: Path, name: str, address: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        callback = _progress_callback(address)
        if system.isdir(place):
            system.get(place.rstrip("/") + "/", str(draft / name) + "/", recursive=True, callback=callback)
        else:
            system.get_file(place, str(draft / name), callback=callback)
        # Large files are identified by size and time, so the time must depend on the remote state only.
        seconds = int(folder.name[:8], 16)
        for file in draft.rglob("*"):
            os.utime(file, (seconds, seconds))
        draft.replace(folder)
    except Exception as error:
        if not (folder / name).exists():  # else another process was faster
            raise UserError(_error_message(address, error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _progress_callback(address: str) -> Any:
    from fsspec.callbacks import DEFAULT_CALLBACK, TqdmCallback

    return TqdmCallback(tqdm_kwargs={"desc": address, "delay": 2}) if sys.stderr.isatty() else DEFAULT_CALLBACK


def _error_message(address: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{address} does not exist; check the address"
    if isinstance(error, ImportError):  # fsspec names the package to install
        return f"{address} cannot be read: {str(error).splitlines()[0]}"
    if isinstance(error, ValueError) and "Protocol" in str(error):
        return f"{address} cannot be read: there is no storage for {address.partition('://')[0]}://"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{address} could not be copied ({reason}); nothing was kept, run the same command again"
