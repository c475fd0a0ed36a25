"""The run folder: atomic files, rows, and a checkpoint in one file that a killed run is re-entered from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from cleantune.errors import UserError
from cleantune.methods.protocol import EpochMetrics
from cleantune.storage.files import _plain, atomic_write, write_error, write_text

CHECKPOINT_TIME_FRACTION = 0.02
"""The share of the time, at the most, that goes into keeping states: after each epoch of a head it would be a third."""


def folder_kind(config: Mapping[str, Any]) -> str:
    """What a folder with this config.toml holds: audit, matrix, reproduction, search, run, or something else."""
    named = next((kind for kind in ("audit", "search") if kind in config.get("record", {})), None)
    marks = {"matrix": "matrix", "synthetic": "reproduction", "method": "run"}
    return named or next((kind for key, kind in marks.items() if key in config), "something else")


class RunDir:
    """One run's folder. Nothing is written into it except through here, and nothing is half written."""

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False, kind: str = "run") -> None:
        """Open the folder for a run.

        Args:
            path: Made where it is missing.
            resume: Take what is there as the run's own.
            overwrite: What is there goes once `clear` is called, so that a run that cannot begin costs nothing.
            kind: What will stand in it, as `folder_kind` says: only what is of the same kind is ever removed.

        Raises:
            UserError: It holds something already and neither resume nor overwrite was asked for; or overwrite was, and
                it holds something other than an earlier run of this kind.
        """
        self.path = path
        self._saved, self._took = time.monotonic(), 0.0
        self.stale = False
        """Whether an earlier run is still there that is to go."""
        there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file; name a folder")
        if there and not resume and not overwrite:
            raise UserError(
                f"--out {path} is not empty; go on with --resume, start anew with --overwrite, or name another"
            )
        if there and overwrite and not resume:
            self._refuse_other(kind)
            self.stale = True
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}; choose another --out") from None

    def _refuse_other(self, kind: str) -> None:
        """Refuse to remove what is no earlier run of this kind."""
        import tomllib

        path = self.path / "config.toml"
        try:
            there = folder_kind(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(
                f"--overwrite: {self.path} holds no earlier run (no config.toml), it is left alone; name another --out"
            ) from None
        if there != kind:
            raise UserError(
                f"--overwrite: {self.path} holds {there} and no {kind}, it is left alone; name another --out"
            )

    def clear(self) -> None:
        """Remove the earlier run that overwrite was asked for."""
        import shutil

        if self.stale:
            shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            self.stale = False

    @property
    def finished(self) -> bool:
        """Whether the run has ended: the summary is written last."""
        return not self.stale and (self.path / "summary.json").is_file()

    # -- checkpoint --------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The single file of the state."""
        return self.path / "checkpoint" / "state.safetensors"

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """The state of a run at the end of an epoch, in one file that replaces the one before."""
        start = time.monotonic()
        # Phases may share a head and modules their weights; the file wants each tensor to own its memory.
        tidy = {n: value.detach().cpu().clone(memory_format=torch.contiguous_format) for n, value in tensors.items()}
        data = to_bytes(tidy, {"counters": json.dumps(_plain(counters))})
        with atomic_write(self.checkpoint) as beside:
            beside.write_bytes(data)
        self._saved = time.monotonic()
        self._took = self._saved - start

    def is_checkpoint_due(self) -> bool:
        """Whether the last state took no more than its share of the time that has passed since (`CHECKPOINT_TIME_FRACTION`)."""
        return self._took <= CHECKPOINT_TIME_FRACTION * (time.monotonic() - self._saved)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved state, or None before the first.

        Raises:
            UserError: The file is damaged.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                counters = json.loads(file.metadata()["counters"])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{self.checkpoint} is damaged ({error}); start anew with --overwrite") from None
        return tensors, counters

    # -- rows --------------------------------------------------------------------------------------------------------

    def rows(self) -> list[EpochMetrics]:
        """The rows written so far; a last line that was cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        out = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                out.append(EpochMetrics(json.loads(line)))
            except json.JSONDecodeError:
                break
        return out

    def truncate_metrics(self, count: int) -> None:
        """Leave the first rows alone: those that the checkpoint knows."""
        rows = self.rows()[:count]
        write_text(self.path / "metrics.jsonl", "".join(line(row) for row in rows))

    def append_metrics(self, row: EpochMetrics) -> None:
        """One more row at the end; it is on the disk before the checkpoint that counts it."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line(row))
                file.flush()
                os.fsync(cast(IO[str], file).fileno())
        except OSError as error:
            raise write_error(path, error) from error


def line(row: EpochMetrics) -> str:
    """A row as a line of JSON."""
    return json.dumps(_plain(row)) + "\n"
