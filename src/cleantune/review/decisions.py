"""Decisions of a reviewer: a CSV that is only ever appended to, on disk before the next one is made."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cleantune.errors import UserError, did_you_mean
from cleantune.storage.files import write_error

COLUMNS = ("time", "id", "split", "given_label", "decision", "label")
DECISIONS = ("keep", "relabel", "drop", "unsure", "undo")
"""`undo` takes back the decision before it on the same row; the last line of a row counts."""
NUM_RECENT = 50
MIN_ERROR_FRACTION = 0.2
"""Fraction of wrong labels among the last `NUM_RECENT` below which stopping is suggested."""


@dataclass(frozen=True)
class Decision:
    """Decision of a reviewer on one label."""

    id: str
    split: str
    given_label: str
    decision: str
    label: str
    """New label; empty unless the decision is `relabel`."""


class Decisions:
    """File of decisions with its current content."""

    def __init__(self, path: Path) -> None:
        """Read the decisions made before.

        Args:
            path: File of decisions; it need not exist.

        Raises:
            UserError: The file is no table of decisions; the message names the line.
        """
        self.path = path
        self._lock = threading.Lock()
        self.history: list[Decision] = list(read_decisions(path)) if path.is_file() else []

    @property
    def current(self) -> dict[tuple[str, str], Decision]:
        """Return the decision of every row that has one, by split and id, in the order they were made."""
        return latest_decisions(self.history)

    def add(self, decision: Decision) -> None:
        """Append a decision; it is on disk when this returns.

        Raises:
            UserError: The file cannot be written.
        """
        with self._lock:
            try:
                is_new = not self.path.is_file() or self.path.stat().st_size == 0
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a+b") as file:
                    text = "" if is_new or _ends_with_newline(self.path) else "\n"
                    rows: list[tuple[str, ...]] = [COLUMNS] if is_new else []
                    time = datetime.now(UTC).isoformat(timespec="seconds")
                    d = decision
                    rows.append((time, d.id, d.split, d.given_label, d.decision, d.label))
                    file.write((text + _csv_lines(rows)).encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error
            self.history.append(decision)

    def undo(self) -> Decision | None:
        """Take the last decision back and return it; None where there is none."""
        remaining = list(self.current.values())
        if not remaining:
            return None
        last = remaining[-1]
        self.add(Decision(last.id, last.split, last.given_label, "undo", ""))
        return last

    def progress(self) -> dict[str, Any]:
        """Return how many rows were decided, how many of those were wrong, and whether to stop."""
        certain = [d for d in self.current.values() if d.decision in ("keep", "relabel", "drop")]
        wrong = [d.decision != "keep" for d in certain]
        recent = wrong[-NUM_RECENT:]
        stop = ""
        if len(recent) == NUM_RECENT and sum(recent) < MIN_ERROR_FRACTION * NUM_RECENT:
            stop = f"of the last {NUM_RECENT} labels, {sum(recent)} were wrong: consider stopping here"
        num_decided = len(self.current)
        return {
            "decided": num_decided,
            "unsure": num_decided - len(certain),
            "wrong": sum(wrong),
            "certain": len(certain),
            "precision": sum(wrong) / len(certain) if certain else None,
            "stop": stop,
        }


def latest_decisions(history: list[Decision]) -> dict[tuple[str, str], Decision]:
    """Return the last decision of every row, by split and id, in the order they were made, without undone ones."""
    out: dict[tuple[str, str], Decision] = {}
    for d in history:
        out.pop((d.split, d.id), None)
        if d.decision != "undo":
            out[d.split, d.id] = d
    return out


def read_decisions(path: Path) -> Iterator[Decision]:
    """Yield the decisions of a file, without a last line that a crash cut off.

    Raises:
        UserError: A column is missing or a decision unknown; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the file of decisions") from None
    complete = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(complete))
    missing = [c for c in COLUMNS[1:] if c not in (reader.fieldnames or [])]
    if missing and (reader.fieldnames or text.strip()):
        raise UserError(f'{path} has no column "{missing[0]}"; decisions have {", ".join(COLUMNS)}')
    for row in reader:
        if row["decision"] is None or row["label"] is None:
            continue  # a line that a crash cut off, with further lines after it
        if row["decision"] not in DECISIONS:
            hint = did_you_mean(row["decision"], DECISIONS)
            raise UserError(f'{path}: line {reader.line_num} has the decision "{row["decision"]}"{hint}')
        if row["decision"] == "relabel" and not row["label"]:
            raise UserError(
                f"{path}: line {reader.line_num} relabels {row['id']} without a label; fill the column label"
            )
        yield Decision(row["id"], row["split"], row["given_label"], row["decision"], row["label"])


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _csv_lines(rows: list[tuple[str, ...]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
