"""Rank entries: means and errors over seeds, the best of a column and its ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

ORDER = ("FFT", "LP", "LP-FFT")
"""Order of the rows by tuning, as in Table 2 of arXiv:2310.17668."""


@dataclass(frozen=True)
class Score:
    """Accuracies of an entry under one noise with one model over its seeds, as fractions."""

    entry: str
    tuning: str
    best: float | None
    best_std: float | None
    last: float | None
    last_std: float | None
    mean: float | None
    """Mean accuracy of the selected models, by which entries are ranked."""
    error: float | None
    """Standard error of the mean: the larger of the seeds' and of the test split's binomial one."""
    num_seeds: int
    num_failed: int
    mark: Literal["best", "tie", ""] = ""
    """Best of its column, or tied with the best."""


def scores(frame: pd.DataFrame) -> dict[tuple[str, str], list[Score]]:
    """Return the scores of a comparison by model and noise, the best and its ties marked.

    Within a column, entries are ordered by tuning as in the paper, then as they were named.
    """
    table: dict[tuple[str, str], list[Score]] = {}
    for (model, noise), block in frame.groupby(["model", "noise"], sort=False):
        column = [score_entry(part) for _, part in block.groupby(["entry", "tuning"], sort=False)]
        table[str(model), str(noise)] = mark_best(sorted(column, key=lambda score: ORDER.index(score.tuning)))
    return table


def score_entry(block: pd.DataFrame) -> Score:
    """Return the score of one entry from the rows of its seeds."""
    done = block[block["status"] == "done"]
    mean, std = mean_std(done["accuracy"])
    sizes = done["test_size"].dropna()
    error = None if mean is None else standard_error(mean, std, len(done), int(sizes.min()) if len(sizes) else 0)
    best, last = mean_std(done["accuracy_best_validation"]), mean_std(done["accuracy_last"])
    first = block.iloc[0]
    num_failed = len(block) - len(done)
    return Score(str(first["entry"]), str(first["tuning"]), *best, *last, mean, error, len(done), num_failed)


def mean_std(values: Any) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation (n - 1); None without values, and no deviation of a single one."""
    values = values.dropna().astype(float)
    if values.empty:
        return None, None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def standard_error(mean: float, std: float | None, num_seeds: int, test_size: int) -> float:
    """Return the larger of the seeds' standard error, std / √n, and the test split's, √(p (1 − p) / size)."""
    binomial = math.sqrt(max(0.0, mean * (1 - mean)) / test_size) if test_size else 0.0
    return max(binomial, (std or 0.0) / math.sqrt(max(1, num_seeds)))


def mark_best(column: Sequence[Score]) -> list[Score]:
    """Return the scores with the best marked, and as ties those within one standard error of it.

    The larger standard error of the two compared entries counts.
    """
    ranked = [score for score in column if score.mean is not None]
    if not ranked:
        return list(column)
    best = max(ranked, key=lambda score: -1.0 if score.mean is None else score.mean)
    mean, error = best.mean or 0.0, best.error or 0.0

    def mark(score: Score) -> Literal["best", "tie", ""]:
        if score is best:
            return "best"
        if score.mean is None or score.error is None:
            return ""
        return "tie" if mean - score.mean <= max(error, score.error) else ""

    return [replace(score, mark=mark(score)) for score in column]
