"""A person's decisions: a CSV that is only ever appended to, on the disk before the next one is made."""

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
RECENT = 50
MIN_ERROR_FRACTION = 0.2
"""Share of wrong labels among the last 50 below which stopping is suggested."""


@dataclass(frozen=True)
class Decision:
    """What a person said of one label."""

    id: str
    split: str
    given_label: str
    decision: str
    label: str
    """The label from now on; empty unless relabeled."""


class Decisions:
    """The file of decisions, and what it says now."""

    def __init__(self, path: Path) -> None:
        """Read what was decided before.

        Raises:
            UserError: The file is no table of decisions; the sentence names the line.
        """
        self.path = path
        self._lock = threading.Lock()
        self.history: list[Decision] = list(read(path)) if path.is_file() else []

    @property
    def now(self) -> dict[tuple[str, str], Decision]:
        """The decision of every row that has one, by split and id, in the order they were made."""
        return latest_decisions(self.history)

    def add(self, decision: Decision) -> None:
        """One more decision; it is on the disk when this returns.

        Raises:
            UserError: The file cannot be written.
        """
        with self._lock:
            try:
                fresh = not self.path.is_file() or self.path.stat().st_size == 0
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a+b") as file:
                    text = "" if fresh or _ends_well(self.path) else "\n"
                    rows: list[tuple[str, ...]] = [COLUMNS] if fresh else []
                    time = datetime.now(UTC).isoformat(timespec="seconds")
                    d = decision
                    rows.append((time, d.id, d.split, d.given_label, d.decision, d.label))
                    file.write((text + _lines(rows)).encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error
            self.history.append(decision)

    def undo(self) -> Decision | None:
        """Take the last decision back; None where there is none left."""
        left = list(self.now.values())
        if not left:
            return None
        last = left[-1]
        self.add(Decision(last.id, last.split, last.given_label, "undo", ""))
        return last

    def progress(self) -> dict[str, Any]:
        """How many were decided, how many of those were wrong, and whether to stop."""
        told = [d for d in self.now.values() if d.decision in ("keep", "relabel", "drop")]
        wrong = [d.decision != "keep" for d in told]
        recent = wrong[-RECENT:]
        stop = ""
        if len(recent) == RECENT and sum(recent) < MIN_ERROR_FRACTION * RECENT:
            stop = f"of the last {RECENT}, {sum(recent)} were wrong: this may be the place to stop"
        return {
            "decided": len(self.now), "unsure": len(self.now) - len(told), "wrong": sum(wrong), "judged": len(told),
            "precision": sum(wrong) / len(told) if told else None, "stop": stop,
        }  # fmt: skip


def latest_decisions(history: list[Decision]) -> dict[tuple[str, str], Decision]:
    """The last decision of every row, in the order they were made; undone ones are gone."""
    out: dict[tuple[str, str], Decision] = {}
    for d in history:
        out.pop((d.split, d.id), None)
        if d.decision != "undo":
            out[d.split, d.id] = d
    return out


def read(path: Path) -> Iterator[Decision]:
    """The decisions of a file; a last line that a crash cut off is left out.

    Raises:
        UserError: A column is missing or a decision unknown; the sentence names the line.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the file of decisions") from None
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    missing = [c for c in COLUMNS[1:] if c not in (reader.fieldnames or [])]
    if missing and (reader.fieldnames or text.strip()):
        raise UserError(f'{path} has no column "{missing[0]}"; decisions have {", ".join(COLUMNS)}')
    for row in reader:
        if row["decision"] is None or row["label"] is None:
            continue  # cut off in the middle of the file by a crash, and gone on with after it
        if row["decision"] not in DECISIONS:
            hint = did_you_mean(row["decision"], DECISIONS)
            raise UserError(f'{path}: line {reader.line_num} has the decision "{row["decision"]}"{hint}')
        if row["decision"] == "relabel" and not row["label"]:
            raise UserError(
                f"{path}: line {reader.line_num} relabels {row['id']} without a label; fill the column label"
            )
        yield Decision(row["id"], row["split"], row["given_label"], row["decision"], row["label"])


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _lines(rows: list[tuple[str, ...]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
