"""Make the tables of a matrix: one row per cell, one row per epoch, and Markdown in the shape of the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.report.svg import sanitize
from cleantune.report.wording import display_method
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare.estimate import MatrixEstimate, uncached_forward_passes
from cleantune.studies.compare.matrix import Cell, Matrix
from cleantune.studies.compare.scores import Score, scores
from cleantune.studies.grid import FAILED, Record

if TYPE_CHECKING:
    import pandas as pd

STRINGS = (
    "entry", "method", "scope", "tuning", "preset", "noise", "model", "status", "reason", "model_selection",
    "selected_model", "learning_rates_tried", "folder",
)  # fmt: skip
INTEGERS = (
    "seed", "forward_passes", "forward_passes_uncached", "evaluation_forward_passes", "training_samples",
    "optimizer_steps", "selected", "train_size", "test_size",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A cell that has run."""

    cell: Cell
    record: Record
    path: Path
    tried: dict[float, float] = field(default_factory=dict)
    """Accuracy on the noisy validation split by learning rate factor, if factors were tried."""

    @property
    def rows(self) -> list[Any]:
        """The metrics of its epochs; none if it failed."""
        return [] if self.record["status"] == FAILED else list(RunDir(self.path, resume=True).read_metrics())

    @property
    def names(self) -> dict[str, Any]:
        """The columns that name the cell."""
        cell = self.cell
        return {
            "entry": cell.entry.name,
            "method": cell.entry.method,
            "scope": cell.entry.scope,
            "tuning": cell.entry.tuning,
            "noise": cell.noise,
            "model": cell.model_name,
            "seed": cell.seed,
            "folder": f"cells/{self.path.name}",
        }


def results_frame(matrix: Matrix, results: Sequence[Result], estimate: MatrixEstimate) -> pd.DataFrame:
    """Return compare.parquet: one row per cell, as docs/compare.md explains it; failed cells lack numbers."""
    import pandas as pd

    frame = pd.DataFrame([result_row(matrix, result, estimate) for result in results])
    for name in frame.columns:
        frame[name] = frame[name].astype("string" if name in STRINGS else "Int64" if name in INTEGERS else "float64")
    return frame


def result_row(matrix: Matrix, result: Result, estimate: MatrixEstimate) -> dict[str, Any]:
    """Return one row of compare.parquet."""
    cell, record = result.cell, result.record
    accuracy, balanced, cost, selection, noise, samples = (
        record.get(key) or {} for key in ("accuracy", "balanced_accuracy", "cost", "selection", "noise", "samples")
    )
    rule = record.get("model_selection") or matrix.common.get("run", {}).get("model_selection", "last")
    final, best, rows = accuracy.get("test"), accuracy.get("best_validation"), result.rows
    last, best = (final, best) if rule == "last" or not rows else (rows[-1]["accuracy_test"], final)
    return {
        **result.names,
        "preset": cell.entry.preset,
        "status": record["status"],
        "reason": record["reason"],
        "model_selection": rule,
        "selected_model": record.get("selected_model"),
        "accuracy": final,
        "accuracy_last": last,
        "accuracy_best_validation": best,
        "accuracy_validation": accuracy.get("validation"),
        "balanced_accuracy": balanced.get("test"),
        "noise_true_rate": noise.get("true_rate", noise.get("rate")),
        "noise_estimated_rate": noise.get("estimated_rate"),
        "selected": selection.get("size"),
        "purity": selection.get("purity"),
        "recall": selection.get("recall"),
        "auroc": selection.get("auroc"),
        "auroc_labels": (record.get("issues") or {}).get("auroc"),
        "learning_rate": record.get("learning_rate"),
        "backbone_learning_rate": record.get("backbone_learning_rate"),
        "learning_rates_tried": tried_words(result),
        "forward_passes": cost.get("forward_passes"),
        "forward_passes_uncached": uncached_forward_passes(cost, estimate.costs[cell.kind]),
        "evaluation_forward_passes": cost.get("evaluation_forward_passes"),
        "training_samples": cost.get("training_samples"),
        "optimizer_steps": cost.get("optimizer_steps"),
        "seconds": cost.get("seconds", {}).get("total"),
        "seconds_extract": cost.get("seconds", {}).get("extract"),
        "train_size": samples.get("train"),
        "test_size": samples.get("test"),
    }


def tried_words(result: Result) -> str | None:
    """Return the learning rate factors that were tried, with their accuracies on the noisy validation split."""
    if not result.tried:
        return None
    tried = ", ".join(f"x {factor:.3g}: {100 * value:.1f} %" for factor, value in sorted(result.tried.items()))
    return f"x {result.cell.factor:.3g} of {tried}"


def epochs_frame(results: Iterable[Result]) -> pd.DataFrame:
    """Return epochs.parquet: one row per epoch of every cell, with the cell's names and the epoch's metrics."""
    import pandas as pd

    rows = []
    for result in results:
        for number, row in enumerate(result.rows):
            metrics = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
            rows.append({**result.names, "row": number, **metrics})
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown: a block per model, a row per entry, a column per noise, best / last in percent."""
    table, lines = scores(frame), ["# Comparison", ""]
    noises = list(dict.fromkeys(noise for _, noise in table))
    ranks_last = set(frame["model_selection"].dropna()) <= {"last"}
    for model in dict.fromkeys(model for model, _ in table):
        heads = " | ".join(map(markdown_text, noises))
        lines += [f"## {markdown_text(model)}", "", f"| Tuning | Method | {heads} |", "|---" * (2 + len(noises)) + "|"]
        columns = [table[model, noise] for noise in noises if (model, noise) in table]
        for rank, first in enumerate(columns[0]):
            cells = [markdown_cell(column[rank], ranks_last) for column in columns]
            lines.append(f"| {first.tuning} | {markdown_text(display_method(first.entry))} | {' | '.join(cells)} |")
        lines.append("")
    lines += [*(f"- {sanitize(text)}" for text in legend(frame)), ""]
    failed = frame[frame["status"] == FAILED]
    if len(failed):
        lines += ["Failed:", ""]
        for row in failed.to_dict("records"):
            name = f"{row['entry']} {row['tuning']}, {row['noise']}, {row['model']}, seed {row['seed']}"
            lines.append(f"- {markdown_text(name)}: {markdown_text(row['reason'])}")
        lines.append("")
    return "\n".join(lines)


def markdown_cell(score: Score, ranks_last: bool) -> str:
    """Return a cell of the Markdown table."""
    if score.mean is None:
        return "failed" if score.num_failed else "–"
    best, last = percent_text(score.best, score.best_std), percent_text(score.last, score.last_std)
    bold = "**" if score.mark == "best" else ""
    best, last = (best, f"{bold}{last}{bold}") if ranks_last else (f"{bold}{best}{bold}", last)
    text = f"{best} / {last}" + (" ≈" if score.mark == "tie" else "")
    return text + (f" ({score.num_failed} failed)" if score.num_failed else "")


def percent_text(mean: float | None, std: float | None) -> str:
    """Return a mean with its standard deviation in percent: `54.1 ± 0.3`."""
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def markdown_text(value: object) -> str:
    """Return a name that can neither break a Markdown table nor become HTML."""
    text = sanitize(value, 200)
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return text


def legend(frame: pd.DataFrame) -> list[str]:
    """Return sentences that explain the table."""
    num_seeds, sizes = frame["seed"].nunique(), frame["test_size"].dropna()
    size = f"{int(sizes.iloc[0]):,} test samples" if len(sizes) else "the test split"
    rules = ", ".join(sorted(set(frame["model_selection"].dropna())))
    seeds = f"mean ± standard deviation over {num_seeds} seeds" if num_seeds > 1 else "one seed"
    out = [
        f"Test accuracy in %, best / last, {seeds}, on {size}. Best: the epoch with the best accuracy on the noisy"
        " validation split. Last: the model at the end of the run.",
        f"Model selection, by which entries are ranked: {rules}. No model is selected on the test split.",
        "**Bold**: the best of a column. ≈: tied with it, within one standard error, the larger of the seeds'"
        " (std / √n) and the test split's (√(p (1 − p) / size)).",
    ]
    if frame["learning_rates_tried"].notna().any():
        out.append("Every entry tried three learning rates on the noisy validation split of the first seed.")
    return out
