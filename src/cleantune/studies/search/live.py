"""The table of trials while they run: redrawn on a terminal, a line a finished trial in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from cleantune.storage.files import write_table
from cleantune.studies.search.trials import Study, frame_of, row_of, stopped
from cleantune.utils.console import Console

SHOWN = 12
"""Rows of the table on a terminal."""


class TrialTable:
    """What is known of the trials, shown as it changes; trials.parquet grows with it."""

    def __init__(self, study: Study, left: list[int], console: Console) -> None:
        """Before the first trial."""
        self.study, self.console = study, console
        self.left, self.ended = set(left), len(study.points) - len(left)
        self.running: dict[int, str] = {}
        self.start = time.perf_counter()
        self._screen: Any = None

    def __enter__(self) -> TrialTable:
        """Take the terminal, where there is one."""
        if not self.console.quiet and sys.stderr.isatty():
            from rich.console import Console as Terminal
            from rich.live import Live as Screen

            self._screen = Screen(console=Terminal(stderr=True), auto_refresh=False)
            self._screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it, with the last table on it."""
        if self._screen is not None:
            self.draw()
            self._screen.stop()

    def callback(self) -> Any:
        """What Ray Tune tells of trials that move on and end."""
        from ray.tune import Callback

        live = self

        class Told(Callback):  # type: ignore[misc]
            def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                live.moved(trial.config["trial"], "running")

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
                if "row" in result:
                    live.moved(trial.config["trial"], f"epoch {result['row']}, {result['accuracy_validation']:.1%}")

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                stopped(live.study, trial.config["trial"])
                live.done(trial.config["trial"])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                live.done(trial.config["trial"])

        return Told()

    def moved(self, number: int, words: str) -> None:
        """A trial is somewhere."""
        self.running[number] = words
        self.draw()

    def done(self, number: int) -> None:
        """A trial has ended, well or not."""
        self.running.pop(number, None)
        self.left.discard(number)
        self.ended += 1
        frame = frame_of(self.study)
        write_table(self.study.out / "trials.parquet", lambda path: frame.to_parquet(path, index=False))
        if self._screen is None:
            self.console.info(f"  {self.ended:>3} of {len(self.study.points)}  trial {number:>3}  {self.line(number)}")
        self.draw()

    def line(self, number: int) -> str:
        """A trial in words."""
        row = row_of(self.study, number)
        settings = "  ".join(f"{d.name} {shown(row[d.name])}" for d in self.study.space)
        if row["status"] == "failed":
            return f"failed: {row['reason']}"
        if row.get("objective") is None:
            return f"{'stopped' if row['status'] == 'pending' else row['status']:>15}  {settings}"
        return f"{number_of(row['objective']):>7} ± {number_of(row['standard_error']):<5}  {settings}"

    def draw(self) -> None:
        """The table on the terminal: what runs, and the best so far."""
        if self._screen is None:
            return
        from rich.table import Table

        table = Table(
            title=f"{self.ended} of {len(self.study.points)} trials, {time.perf_counter() - self.start:.0f} s"
        )
        for name in ("trial", "state", "objective", "±", *(d.name for d in self.study.space)):
            table.add_column(name, justify="right")
        rows = [row_of(self.study, n) for n in range(len(self.study.points)) if n not in self.left or n in self.running]
        rows.sort(key=lambda row: -(row.get("objective") or float("-inf")) if row["trial"] not in self.running else 1e9)
        for row in rows[:SHOWN]:
            state = self.running.get(row["trial"], row["status"])
            known = row.get("objective") is not None
            table.add_row(
                str(row["trial"]), state, number_of(row["objective"]) if known else "",
                number_of(row["standard_error"]) if known else "", *(shown(row[d.name]) for d in self.study.space),
            )  # fmt: skip
        self._screen.update(table, refresh=True)


def number_of(value: float) -> str:
    """An objective for people."""
    return f"{value:.4f}"


def shown(value: Any) -> str:
    """A setting for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
