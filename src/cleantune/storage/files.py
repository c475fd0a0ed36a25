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
    """Where pixels, features, timings and copies of distant data are kept."""
    chosen = setting or os.environ.get("CLEANTUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "cleantune"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside the real one to write to; it takes the real one's place only when all went well.

    Raises:
        UserError: The disk is full; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> UserError:
    """The sentence for a file that could not be written."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another --out, then --resume"
    )


def write_text(path: Path, text: str) -> None:
    """A text file, atomically."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A JSON file, atomically; numbers that JSON does not have become null."""
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, write: Callable[[Path], None]) -> None:
    """A file that a function writes, atomically."""
    with atomic_write(path) as beside:
        write(beside)


def read_json(path: Path) -> Any:
    """A JSON file of a run.

    Raises:
        UserError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is no finished run; finish it with --resume") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); run again with --overwrite") from None


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
