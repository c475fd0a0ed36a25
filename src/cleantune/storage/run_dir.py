"""The folder of a run: one class that writes it, resumes it and reads it."""

from __future__ import annotations

import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, contiguous_format

from cleantune.errors import UserError
from cleantune.methods.protocol import EpochMetrics
from cleantune.storage import readers
from cleantune.storage.files import atomic_write, json_line, read_json, to_json, write_error, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

CHECKPOINT_TIME_FRACTION = 0.02
"""Largest share of the running time that goes into checkpoints; one after each epoch of a head would take a third."""
LABEL_COLUMNS = ("id", "split", "given_label", "suggested_label", "label_score", "p_wrong", "is_label_issue")
SUMMARY_KEYS = ("method", "class_names", "samples.train")
UNFINISHED = "so the run is unfinished or incomplete; finish it with the same `cleantune fit` command and --resume"


def folder_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of a folder with this config.toml: audit, matrix, reproduction, search, run or something else."""
    recorded = next((kind for kind in ("audit", "search") if kind in config.get("record", {})), None)
    marks = {"matrix": "matrix", "synthetic": "reproduction", "method": "run"}
    return recorded or next((kind for key, kind in marks.items() if key in config), "something else")


class RunDir:
    """The folder of one run; every file is written through it, and no file is ever half written.

    A run that trains opens it by the constructor, which refuses a folder with other contents. A reader of a finished
    run opens it by `RunDir.read`; each file is then read on first access.
    """

    CONFIG = "config.toml"
    METRICS = "metrics.jsonl"
    SUMMARY = "summary.json"
    LABELS = "labels.parquet"
    LABELS_CSV = "labels.csv"
    UNLABELED = "unlabeled.parquet"
    REPORT = "report.html"
    MODEL = "model"
    CHECKPOINT = "checkpoint/state.safetensors"
    COMPUTE = "checkpoint/compute.json"
    GALLERY = "artifacts/gallery.json"
    NEIGHBORS = "artifacts/neighbors.parquet"
    UNREADABLE = "artifacts/unreadable_samples.csv"

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False, kind: str = "run") -> None:
        """Open the folder for a run.

        Args:
            path: Folder; created where it is missing.
            resume: Continue the run in the folder.
            overwrite: Remove the earlier run once `clear` is called, so a run that cannot start costs nothing.
            kind: Kind of the run, as `folder_kind` names it; only an earlier run of the same kind is ever removed.

        Raises:
            UserError: The folder is not empty and neither `resume` nor `overwrite` is set, or `overwrite` is set and
                the folder has no earlier run of this kind.
        """
        self.path = path
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self.is_to_be_cleared = False
        """An earlier run is still there and goes when `clear` is called."""
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file; name a folder")
        if path.is_dir() and any(path.iterdir()) and not resume:
            if not overwrite:
                raise UserError(
                    f"--out {path} is not empty; continue it with --resume, replace it with --overwrite, or name"
                    " another folder"
                )
            self._refuse_other_kind(kind)
            self.is_to_be_cleared = True
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}; choose another --out") from None

    @classmethod
    def read(cls, path: Path) -> RunDir:
        """Open the folder of a finished run for reading.

        Raises:
            UserError: There is no such folder, it is that of an audit or a study, or a file that every finished run has
                is missing.
        """
        if not path.is_dir():
            raise UserError(f"{path} is no run folder; name the folder that `cleantune fit … --out` wrote")
        if (path / cls.CONFIG).is_file():
            kind = folder_kind(readers.read_checked(path / cls.CONFIG, readers.read_toml_table))
            if kind not in ("run", "something else"):
                raise UserError(f"{path} has {kind} and no run; name the folder that `cleantune fit … --out` wrote")
        for name in (cls.CONFIG, cls.METRICS, cls.SUMMARY, cls.LABELS):
            if not (path / name).is_file():
                raise UserError(f"{path / name} is missing, {UNFINISHED}")
        return cls(path, resume=True)

    def _refuse_other_kind(self, kind: str) -> None:
        """Refuse to remove anything but an earlier run of this kind."""
        try:
            existing = folder_kind(tomllib.loads((self.path / self.CONFIG).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(
                f"--overwrite: {self.path} has no earlier run (no config.toml) and is left alone; name another --out"
            ) from None
        if existing != kind:
            raise UserError(
                f"--overwrite: {self.path} has {existing} and no {kind}, and is left alone; name another --out"
            )

    def clear(self) -> None:
        """Remove the earlier run that `overwrite` was set for."""
        if self.is_to_be_cleared:
            shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            self.is_to_be_cleared = False

    @property
    def is_finished(self) -> bool:
        """Return whether the run has finished; the summary is written last."""
        return not self.is_to_be_cleared and (self.path / self.SUMMARY).is_file()

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Write the checkpoint, one file that replaces the previous one.

        Args:
            tensors: State by name.
            counters: JSON values, kept in the file's metadata.
        """
        start = time.monotonic()
        # Phases may share a head and modules their weights; the format wants each tensor to have its own memory.
        copies = {n: value.detach().cpu().clone(memory_format=contiguous_format) for n, value in tensors.items()}
        data = to_bytes(copies, {"counters": json.dumps(to_json(counters))})
        with atomic_write(self.path / self.CHECKPOINT) as draft:
            draft.write_bytes(data)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def is_checkpoint_due(self) -> bool:
        """Return True once the last checkpoint took at most `CHECKPOINT_TIME_FRACTION` of the time since."""
        return self._save_seconds <= CHECKPOINT_TIME_FRACTION * (time.monotonic() - self._saved_at)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the checkpoint: tensors and counters, or None where there is none yet.

        Raises:
            UserError: The file is damaged.
        """
        path = self.path / self.CHECKPOINT
        if self.is_to_be_cleared or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                counters = json.loads(file.metadata()["counters"])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged ({error}); start again with --overwrite") from None
        return tensors, counters

    def write_compute(self, compute: Mapping[str, Any]) -> None:
        """Record the backend and precisions, which a resumed run keeps."""
        write_json(self.path / self.COMPUTE, compute)

    def compute(self) -> dict[str, Any] | None:
        """Return the recorded backend and precisions, None where there are none."""
        path = self.path / self.COMPUTE
        if self.is_to_be_cleared or not path.is_file():
            return None
        recorded: dict[str, Any] = read_json(path)
        return recorded

    # -- metrics -----------------------------------------------------------------------------------------------------

    def read_metrics(self) -> list[EpochMetrics]:
        """Read the metrics written so far, without a last line that a kill cut off."""
        path = self.path / self.METRICS
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(EpochMetrics(json.loads(line)))
            except json.JSONDecodeError:
                break
        return rows

    def truncate_metrics(self) -> list[EpochMetrics]:
        """Drop the metrics of epochs that the checkpoint does not count, and return the others."""
        checkpoint = self.load()
        kept = self.read_metrics()[: checkpoint[1]["rows"] if checkpoint else 0]
        write_text(self.path / self.METRICS, "".join(json_line(row) for row in kept))
        return kept

    def append_metrics(self, row: EpochMetrics) -> None:
        """Append the metrics of one epoch; they are on disk before the checkpoint that counts them."""
        path = self.path / self.METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json_line(row))
                file.flush()
                os.fsync(cast(IO[str], file).fileno())
        except OSError as error:
            raise write_error(path, error) from error

    # -- contents of a finished run ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Table of config.toml."""
        return readers.read_checked(self.path / self.CONFIG, readers.read_toml_table)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of all epochs; a damaged line is an error here."""
        return readers.read_checked(self.path / self.METRICS, readers.read_metrics_lines)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Table of summary.json."""
        path = self.path / self.SUMMARY
        summary = readers.read_checked(path, readers.read_json_object)
        for key in SUMMARY_KEYS:
            if readers.value_at(summary, key) is None:
                raise UserError(f"{path} lacks {key}; repeat the run with --overwrite")
        return summary

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Label table, worst first, with labels as names of classes."""
        return readers.read_checked(self.path / self.LABELS, lambda path: readers.read_parquet(path, LABEL_COLUMNS))

    @cached_property
    def gallery(self) -> list[dict[str, Any]] | None:
        """Most suspicious samples with thumbnail or text, None where they were not written."""
        return self._optional(self.GALLERY, readers.read_json_list)

    @cached_property
    def unreadable(self) -> list[dict[str, str]] | None:
        """Samples that could not be read, None where there were none."""
        return self._optional(self.UNREADABLE, readers.read_csv_rows)

    def _optional(self, name: str, reader: Callable[[Path], T]) -> T | None:
        path = self.path / name
        return readers.read_checked(path, reader, "remove it and rebuild") if path.is_file() else None

    def get(self, path: str) -> Any:
        """Return the value under a dotted path of summary.json, None where there is none."""
        return readers.value_at(self.summary, path)

    def number(self, path: str) -> float | None:
        """Return the finite number under a dotted path of summary.json, None where there is none."""
        return readers.finite(self.get(path))

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the model's outputs."""
        return [str(name) for name in self.summary["class_names"]]
