"""Run the cells of a study one by one: resume, record, progress and failures in one place.

A study (a comparison, a search, a reproduction, a transfer study) declares its cells and what one of them computes. The
grid gives each cell a folder with a `record.json`, skips cells whose record is there, keeps the reason of a cell that
failed, and estimates the time that is left.
"""

from __future__ import annotations

import gc
import hashlib
import re
import shutil
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

import tomli_w
import torch

from cleantune.config.run import load_toml
from cleantune.errors import UserError
from cleantune.pipeline.record import versions
from cleantune.storage.files import read_json, write_json, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.utils.console import Console
from cleantune.utils.format import duration

RECORD = "record.json"
TRACEBACK = "traceback.txt"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
"""Status of a record; a stopped cell was ended early by a scheduler."""
MAX_REASON = 400
"""Characters of a reason at most."""
MAX_NAME = 90
"""Characters of the readable part of a folder name at most."""

Record = dict[str, Any]
"""Result of a cell: `status`, `reason` (None unless it failed), and the values that the study computes."""


class Cell(Protocol):
    """One unit of work of a study."""

    @property
    def folder(self) -> str:
        """Name of the cell's folder, unique in the study."""

    @property
    def title(self) -> str:
        """Name of the cell in progress lines."""

    @property
    def kind(self) -> Hashable:
        """Key that cells of about the same duration share."""


C = TypeVar("C", bound=Cell)


class Grid(Generic[C]):
    """The cells of one study, below one folder."""

    def __init__(
        self,
        folder: Path,
        cells: Sequence[C],
        console: Console,
        expected_seconds: Mapping[Hashable, float] | None = None,
    ) -> None:
        """Find out which cells are still to be run.

        Args:
            folder: Folder of the cells' folders.
            cells: All cells of the study.
            console: Where progress is shown.
            expected_seconds: Estimated duration by kind of cell; None: all kinds take as long.
        """
        self.folder, self.console, self.expected_seconds = folder, console, expected_seconds
        self.cells = {cell.folder: cell for cell in cells}
        self.pending = {name: cell for name, cell in self.cells.items() if not is_finished(folder / name)}
        self._seconds: dict[Hashable, list[float]] = {}

    def path(self, cell: C) -> Path:
        """Return the folder of a cell."""
        return self.folder / cell.folder

    def is_finished(self, cell: C) -> bool:
        """Return whether the cell needs no further run; a failed one is tried again."""
        return is_finished(self.path(cell))

    def run(
        self,
        cell: C,
        compute: Callable[[Path], Mapping[str, Any]],
        describe: Callable[[Record], str],
        context: Mapping[str, Any] | None = None,
    ) -> Record:
        """Return the record of a cell; compute it first if it has none, or failed in an earlier session.

        Args:
            cell: The cell.
            compute: Function from the cell's folder to the values of its record.
            describe: Function from the record of a finished cell to a progress line.
            context: Values that the record contains even if the cell fails.
        """
        name = cell.folder
        path = self.folder / name
        if name not in self.pending:
            return read_record(path)
        self.console.info(self.progress(cell))
        start = time.perf_counter()
        record = run_cell(path, compute, context)
        del self.pending[name]
        self._seconds.setdefault(cell.kind, []).append(time.perf_counter() - start)
        self.console.info(f"  {describe(record) if record['status'] == DONE else 'failed: ' + record['reason']}")
        release_memory()
        return record

    def replace(self, old: C, new: C) -> None:
        """Plan a cell in place of another one, unless it is planned already."""
        if new.folder not in self.cells:
            for cells in (self.cells, self.pending):
                cells.pop(old.folder, None)
            self.cells[new.folder] = new
            if not self.is_finished(new):
                self.pending[new.folder] = new

    def progress(self, cell: C) -> str:
        """Return the line that is shown when a cell starts."""
        left = self.seconds_left()
        estimate = "" if left is None else f", about {duration(left)} left"
        total = len(self.cells)
        return f"{total - len(self.pending)} of {total} cells done{estimate}; running: {cell.title}"

    def seconds_left(self) -> float | None:
        """Return the estimated duration of the pending cells, or None before there is any.

        A kind that has run counts by its mean duration, another one by its estimate, scaled by how the estimates of the
        cells that ran compare with their true durations.
        """
        if not self._seconds and self.expected_seconds is None:
            return None
        expected = self.expected_seconds or {}
        true = sum(sum(times) for times in self._seconds.values())
        estimated = sum(expected.get(kind, 1.0) * len(times) for kind, times in self._seconds.items())
        scale = true / estimated if estimated > 0 else 1.0
        return sum(
            fmean(self._seconds[cell.kind]) if cell.kind in self._seconds else scale * expected.get(cell.kind, 1.0)
            for cell in self.pending.values()
        )


def run_cell(
    path: Path, compute: Callable[[Path], Mapping[str, Any]], context: Mapping[str, Any] | None = None
) -> Record:
    """Compute a cell in its folder, record what came out or why it failed, and return the record.

    The record is the last file written, so a cell that was interrupted has none and is resumed from its checkpoint. The
    checkpoint of a finished cell is removed.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / TRACEBACK).unlink(missing_ok=True)
    try:
        record = {"status": DONE, "reason": None, **(context or {}), **compute(path)}
    except Exception as error:  # whatever went wrong in one cell, the others run
        record = {"status": FAILED, "reason": one_sentence(error), **(context or {})}
        if not isinstance(error, UserError):
            write_text(path / TRACEBACK, traceback.format_exc())
    write_json(path / RECORD, record)
    if record["status"] == DONE:
        shutil.rmtree(path / "checkpoint", ignore_errors=True)
    return read_record(path)


def is_finished(path: Path) -> bool:
    """Return whether the folder has the record of a cell that did not fail."""
    return (path / RECORD).is_file() and read_record(path)["status"] != FAILED


def read_record(path: Path) -> Record:
    """Return the record in a cell's folder."""
    record: Record = read_json(path / RECORD)
    return record


def release_memory() -> None:
    """Return the memory of a finished cell to the allocator before the next one starts."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_sentence(error: BaseException) -> str:
    """Return an error as one line of limited length, with its type unless it is a UserError."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1].rstrip() + "…"


def folder_name(words: Iterable[object], identity: str) -> str:
    """Return a readable folder name that differs whenever the identity does.

    Args:
        words: Parts of the readable name.
        identity: Text that is the same only for the same cell.
    """
    text = "_".join(re.sub(r"[^a-z0-9.]+", "-", str(word).lower()).strip("-.") for word in words)
    return f"{text[:MAX_NAME]}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def open_study(
    out: Path, kind: str, settings: Mapping[str, Any], *, resume: bool, overwrite: bool, record: Mapping[str, Any] = {}
) -> Path:
    """Open the folder of a study and write its settings as config.toml.

    Args:
        out: The folder.
        kind: Kind of the study, as `storage.run_dir.folder_kind` names it.
        settings: Everything that decides what the cells compute, as a TOML table.
        resume: Continue the study in the folder.
        overwrite: Remove an earlier study of the same kind.
        record: Further values of the table `record`, which runs do not read.

    Returns:
        The folder.

    Raises:
        UserError: The folder contains something else, or the study to resume has other settings.
    """
    folder = RunDir(out, resume=resume, overwrite=overwrite, kind=kind)
    if resume and (out / "config.toml").is_file():
        stored = load_toml(out / "config.toml")
        stored.get("record", {}).pop("versions", None)
        refuse_changes({**settings, "record": dict(record)}, stored)
    folder.clear()
    table = {**settings, "record": {**record, "versions": versions()}}
    write_text(out / "config.toml", tomli_w.dumps(table))
    return out


def refuse_changes(now: Mapping[str, Any], stored: Mapping[str, Any], path: str = "") -> None:
    """Refuse to resume with other settings.

    Args:
        now: The settings of this call.
        stored: The settings in the folder.
        path: Prefix of the keys in messages.

    Raises:
        UserError: A value differs; the sentence names the first key.
    """
    for key in [*stored, *(key for key in now if key not in stored)]:
        _refuse_change(now.get(key), stored.get(key), f"{path}{key}")


def _refuse_change(now: Any, stored: Any, key: str) -> None:
    if isinstance(now, Mapping) and isinstance(stored, Mapping):
        refuse_changes(now, stored, f"{key}.")
    elif _is_list(now) and _is_list(stored) and len(now) == len(stored):
        for k, (new, old) in enumerate(zip(now, stored, strict=True)):
            _refuse_change(new, old, f"{key}[{k}]")
    elif now != stored:
        change = f"{key} is {_shown(now)} now and was {_shown(stored)}"
        raise UserError(f"--resume: {change}; resume with the same settings, or start over with --overwrite")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _shown(value: Any) -> str:
    """Return a value for a message; a list of tables by their names."""
    if _is_list(value):
        value = [element.get("name", "…") if isinstance(element, Mapping) else element for element in value]
    text = repr(value)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
