"""Show a line for each trial that ends, and keep trials.parquet up to date."""

from __future__ import annotations

from typing import Any

from cleantune.studies.grid import FAILED
from cleantune.studies.search.trials import Study, record_stop, trial_row, trials_frame, write_trials
from cleantune.utils.console import Console


class TrialTable:
    """The progress of all trials."""

    def __init__(self, study: Study, pending: list[int], console: Console) -> None:
        """Begin with the trials that are still to be run."""
        self.study, self.console = study, console
        self.num_finished = len(study.points) - len(pending)

    def callback(self) -> Any:
        """Return the callback through which Ray Tune reports that a trial has ended."""
        from ray.tune import Callback

        table = self

        class TableCallback(Callback):  # type: ignore[misc]
            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                record_stop(table.study, trial.config["trial"])
                table.finish(trial.config["trial"])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                table.finish(trial.config["trial"])

        return TableCallback()

    def finish(self, trial: int) -> None:
        """Write the table after a trial has finished, failed or been stopped."""
        self.num_finished += 1
        write_trials(self.study, trials_frame(self.study))
        self.console.info(f"{self.num_finished:>3} of {len(self.study.points)}  trial {trial:>3}  {self.line(trial)}")

    def line(self, trial: int) -> str:
        """Return the outcome and the settings of a trial as text."""
        row = trial_row(self.study, trial)
        if row["status"] == FAILED:
            return f"failed: {row['reason']}"
        settings = "  ".join(f"{d.name} {value_text(row[d.name])}" for d in self.study.space)
        if row.get("objective") is None:
            return f"{'stopped' if row['stopped'] else row['status']:>16}  {settings}"
        return f"{row['objective']:>7.4f} ± {row['standard_error']:.4f}  {settings}"


def value_text(value: Any) -> str:
    """Return the value of a setting as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
