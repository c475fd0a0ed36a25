"""What a run says while it works: lines, bars over anything long, and a table with a line an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

PATIENCE = 2.0
"""A bar appears over what takes longer than this, in seconds."""

COLUMNS = (
    ("phase", "phase", "{}"),
    ("epoch", "epoch", "{}"),
    ("loss", "loss", "{:.3f}"),
    ("selected", "trusted", "{:,}"),
    ("purity", "purity", "{:.1%}"),
    ("auroc", "AUROC", "{:.3f}"),
    ("accuracy_validation", "validation", "{:.1%}"),
    ("accuracy_test", "test", "{:.1%}"),
    ("forward_passes", "forward_passes", "{:,}"),
    ("seconds", "seconds", "{:.0f}"),
)
"""Key of a row, heading, and how the value is written."""


class Console:
    """Where a run speaks. A silent one says nothing; a terminal gets bars, a log file does not."""

    def __init__(self, quiet: bool = False, out: TextIO | None = None) -> None:
        """Speak to standard error, which leaves standard output to results, or into a file."""
        self.quiet = quiet
        self._out = out
        self.messages: list[str] = []
        self._headed = False

    def print(self, text: str) -> None:
        """One line; it is also kept for the run's notes."""
        self.messages.append(text)
        self.info(text)

    def info(self, text: str) -> None:
        """One line that is not worth a note."""
        if not self.quiet:
            print(text, file=self._out or sys.stderr, flush=True)

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of the table of epochs, with the heading before the first."""
        if not self._headed:
            self.info("  ".join(f"{title:>10}" for _, title, _ in COLUMNS))
            self._headed = True
        cells = ("" if row.get(key) is None else form.format(row[key]) for key, _, form in COLUMNS)
        self.info("  ".join(f"{cell:>10}" for cell in cells))

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A function to be told `(done, total)`; on a terminal it draws a bar once two seconds have passed."""
        if self.quiet or not (self._out or sys.stderr).isatty():
            yield lambda done, total: None
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Terminal(stderr=True), transient=True,
        )  # fmt: skip
        task, start = progress.add_task(title, total=None), time.perf_counter()

        def messages(done: int, total: int) -> None:
            if not progress.live.is_started and time.perf_counter() - start > PATIENCE:
                progress.start()
            progress.update(task, completed=done, total=total)

        try:
            yield messages
        finally:
            if progress.live.is_started:
                progress.stop()
