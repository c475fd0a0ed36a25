"""Atomic writes, JSON, and the cache folder."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cleantune.errors import UserError


def cache_folder(setting: str | None) -> Path:
    """Return the folder of decoded images, features and copies of remote data.

    Args:
        setting: Folder from the configuration; None: `$CLEANTUNE_CACHE`, else `~/.cache/cleantune`.
    """
    chosen = setting or os.environ.get("CLEANTUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "cleantune"


@contextmanager
def atomic_write(path: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a draft path in the same folder, which replaces `path` only if the block succeeds.

    Args:
        path: File to write.
        option: Option that names another place, for the error message.

    Raises:
        UserError: The file cannot be written; an earlier file under `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise write_error(path, error, option) from error
    finally:
        draft.unlink(missing_ok=True)


def write_error(path: Path, error: OSError, option: str = "--out") -> UserError:
    """Return the error for a file that cannot be written, with the option that names another place."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another {option}, then --resume"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that JSON does not have become null."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically by a function of the path."""
    with atomic_write(path) as draft:
        write(draft)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is no finished run; finish it with --resume") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); run again with --overwrite") from None


def json_line(row: Mapping[str, Any]) -> str:
    """Return a mapping as one line of JSON."""
    return json.dumps(to_json(row)) + "\n"


def to_json(value: Any) -> Any:
    """Return the value in JSON's types; tensors and numpy scalars become numbers, what is not finite null."""
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
