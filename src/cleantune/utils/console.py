"""Output of a run on standard error: messages, progress bars, and a table with one row per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

PROGRESS_DELAY = 2.0
"""Seconds until a progress bar appears; shorter tasks have none."""

COLUMNS = (
    ("phase", "phase", "{}"),
    ("epoch", "epoch", "{}"),
    ("loss", "loss", "{:.3f}"),
    ("selected", "selected", "{:,}"),
    ("purity", "purity", "{:.1%}"),
    ("auroc", "AUROC", "{:.3f}"),
    ("accuracy_validation", "validation", "{:.1%}"),
    ("accuracy_test", "test", "{:.1%}"),
    ("forward_passes", "passes", "{:,}"),
    ("seconds", "seconds", "{:.0f}"),
)
"""Key of the metrics of an epoch, heading, and format."""


class Console:
    """Output of a run; quiet, on a terminal with progress bars, or in a file without them."""

    def __init__(self, quiet: bool = False, out: TextIO | None = None) -> None:
        """Open the console.

        Args:
            quiet: Print nothing.
            out: Stream; standard error by default, since standard output is for results.
        """
        self.quiet = quiet
        self._out = out
        self._has_header = False

    def info(self, text: str) -> None:
        """Print a message."""
        if not self.quiet:
            print(text, file=self._out or sys.stderr, flush=True)

    def row(self, metrics: Mapping[str, Any]) -> None:
        """Print the metrics of an epoch as a row of a table, the first with a header."""
        if not self._has_header:
            self.info("  ".join(f"{heading:>10}" for _, heading, _ in COLUMNS))
            self._has_header = True
        cells = ("" if metrics.get(key) is None else form.format(metrics[key]) for key, _, form in COLUMNS)
        self.info("  ".join(f"{cell:>10}" for cell in cells))

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function of (done, total) that draws a progress bar, on a terminal, if the task takes a while."""
        if self.quiet or not (self._out or sys.stderr).isatty():
            yield lambda done, total: None
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=RichConsole(stderr=True), transient=True,
        )  # fmt: skip
        task, start = bar.add_task(title, total=None), time.perf_counter()

        def update(done: int, total: int) -> None:
            if not bar.live.is_started and time.perf_counter() - start > PROGRESS_DELAY:
                bar.start()
            bar.update(task, completed=done, total=total)

        try:
            yield update
        finally:
            if bar.live.is_started:
                bar.stop()
