"""The table of a matrix: a row a cell and seed, means and ties over seeds, and Markdown in the shape of the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cleantune.studies.compare.cells import Outcome
from cleantune.studies.compare.estimate import Plan
from cleantune.studies.compare.matrix import Matrix

if TYPE_CHECKING:
    import pandas as pd

STRINGS = (
    "entry", "method", "scope", "tuning", "preset", "noise", "model", "status", "reason", "chosen", "selected_model",
    "rates", "folder",
)  # fmt: skip


def frame_of(matrix: Matrix, outcomes: Sequence[Outcome], plan: Plan | None) -> pd.DataFrame:
    """One row a cell and seed; docs/compare.md explains the columns. Numbers that a failed cell lacks are missing."""
    import pandas as pd

    frame = pd.DataFrame([row_of(matrix, outcome, plan) for outcome in outcomes])
    for name in frame.columns:
        frame[name] = frame[name].astype("string" if name in STRINGS else "Int64" if name in WHOLE else "float64")
    return frame


WHOLE = (
    "seed", "forward_passes", "forward_passes_uncached", "evaluation_forward_passes", "training_samples", "optimizer_steps", "selected",
    "train_size", "test_size",
)  # fmt: skip


def row_of(matrix: Matrix, outcome: Outcome, plan: Plan | None) -> dict[str, Any]:
    """A row of compare.parquet."""
    cell, told = outcome.cell, outcome.summary or {}
    accuracy, cost, selection = (told.get(key, {}) for key in ("accuracy", "cost", "selection"))
    noise, samples = told.get("noise") or outcome.noise or {}, told.get("samples", {})
    chosen = told.get("chosen") or matrix.common.get("run", {}).get("model_selection", "last")
    rows = outcome.rows
    ended, best = accuracy.get("test"), accuracy.get("best_validation")
    last, best = (ended, best) if chosen == "last" or not rows else (rows[-1]["accuracy_test"], ended)
    return {
        "entry": cell.entry.name,
        "method": cell.entry.method,
        "scope": cell.entry.scope,
        "tuning": cell.entry.tuning,
        "preset": cell.entry.preset,
        "noise": cell.noise,
        "model": matrix.labels[cell.model],
        "seed": cell.seed,
        "status": "failed" if outcome.summary is None else "done",
        "reason": outcome.reason,
        "chosen": chosen,
        "accuracy": ended,
        "accuracy_last": last,
        "accuracy_best_validation": best,
        "accuracy_validation": accuracy.get("validation"),
        "selected_model": told.get("selected_model"),
        "noise_true_rate": noise.get("true_rate", noise.get("rate")),
        "noise_estimated_rate": noise.get("estimated_rate"),
        "selected": selection.get("size"),
        "purity": selection.get("purity"),
        "recall": selection.get("recall"),
        "auroc": selection.get("auroc"),
        "auroc_labels": told.get("issues", {}).get("auroc"),
        "learning_rate": told.get("learning_rate"),
        "backbone_learning_rate": told.get("backbone_learning_rate"),
        "rates": words_of(outcome),
        "forward_passes": cost.get("forward_passes"),
        "forward_passes_uncached": uncached(outcome, cost, plan),
        "evaluation_forward_passes": cost.get("evaluation_forward_passes"),
        "training_samples": cost.get("training_samples"),
        "optimizer_steps": cost.get("optimizer_steps"),
        "seconds": cost.get("seconds", {}).get("total"),
        "seconds_extract": cost.get("seconds", {}).get("extract"),
        "train_size": samples.get("train"),
        "test_size": samples.get("test"),
        "folder": outcome.folder,
    }


def words_of(outcome: Outcome) -> str | None:
    """What was tried before the learning rate was taken, with the accuracies on the noisy validation split."""
    if not outcome.trials:
        return None
    tried = ", ".join(f"x {rate:.3g}: {100 * value:.1f} %" for rate, value in sorted(outcome.trials.items()))
    return f"x {outcome.cell.rate:.3g} of {tried}"


def uncached(outcome: Outcome, cost: dict[str, Any], plan: Plan | None) -> int | None:
    """Forwards had nothing been cached: what went through the backbone, and what cached features stood for.

    The latter is the cost model's, in proportion to the samples that were really learned from.
    """
    cell = outcome.cell
    foreseen = plan.spent.get((cell.entry, cell.model)) if plan is not None else None
    if foreseen is None or not cost or not foreseen.training_samples:
        return None
    stood: float = foreseen.num_cached * cost["training_samples"] / foreseen.training_samples
    return round(float(cost["forward_passes"] - foreseen.num_extracted * bool(cost["forward_passes"]) + stood))


def epochs_of(matrix: Matrix, outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One row an epoch of every cell: the cell's name and the epoch's numbers."""
    import pandas as pd

    rows = []
    for outcome in outcomes:
        cell = outcome.cell
        named: dict[str, Any] = {
            "entry": cell.entry.name,
            "method": cell.entry.method,
            "scope": cell.entry.scope,
            "tuning": cell.entry.tuning,
            "noise": cell.noise,
            "model": matrix.labels[cell.model],
            "seed": cell.seed,
            "folder": outcome.folder,
        }
        for number, row in enumerate(outcome.rows):
            flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
            rows.append(named | {"row": number} | flat)
    return pd.DataFrame(rows)


ORDER = ("FFT", "LP", "LP-FFT")
"""Of the rows, as in the paper's Table 2."""


@dataclass(frozen=True)
class Score:
    """An entry under one noise with one model, over its seeds; shares."""

    entry: str
    tuning: str
    best: float | None
    best_std: float | None
    last: float | None
    last_std: float | None
    mean: float | None
    """Of the chosen model's accuracy, by which entries are ranked."""
    error: float | None
    """Its standard error: the larger of the seeds' and of the test split's binomial one."""
    seeds: int
    failed: int
    mark: str = ""
    """`best`, `tie` with the best, or neither."""


def scores(frame: pd.DataFrame) -> dict[tuple[str, str], list[Score]]:
    """The scores of a whole table by model and noise, with the best and its ties marked, in the table's order.

    Rows go by what learns, as in the paper, and within that as they were named.
    """
    found: dict[tuple[str, str], list[Score]] = {}
    for (model, noise), block in frame.groupby(["model", "noise"], sort=False):
        each = [score_of(part) for _, part in block.groupby(["entry", "tuning"], sort=False)]
        found[str(model), str(noise)] = marked(sorted(each, key=lambda s: ORDER.index(s.tuning)))
    return found


def score_of(block: pd.DataFrame) -> Score:
    """An entry's seeds as one score."""
    done = block[block["status"] == "done"]
    mean, std = mean_std(done["accuracy"])
    sizes = done["test_size"].dropna()
    error = None if mean is None else standard_error(mean, std, len(done), int(sizes.min()) if len(sizes) else 0)
    best, last = mean_std(done["accuracy_best_validation"]), mean_std(done["accuracy_last"])
    first = block.iloc[0]
    return Score(
        str(first["entry"]), str(first["tuning"]), *best, *last, mean, error, len(done), len(block) - len(done)
    )


def mean_std(values: Any) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None of nothing, and no deviation of one."""
    known = values.dropna().astype(float)
    if known.empty:
        return None, None
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None


def standard_error(mean: float, std: float | None, seeds: int, test_size: int) -> float:
    """The larger of the seeds' standard error, std / sqrt(n), and the test split's, sqrt(p (1 - p) / size)."""
    binomial = math.sqrt(max(0.0, mean * (1 - mean)) / test_size) if test_size else 0.0
    return max(binomial, (std or 0.0) / math.sqrt(max(1, seeds)))


def marked(each: Sequence[Score]) -> list[Score]:
    """The scores with the best marked, and as ties those whose difference to it is inside one standard error.

    Of the standard errors of the two that are compared the larger counts.
    """
    from dataclasses import replace

    ranked = [s for s in each if s.mean is not None]
    if not ranked:
        return list(each)
    best = max(ranked, key=lambda s: -1.0 if s.mean is None else s.mean)
    mean, error = best.mean or 0.0, best.error or 0.0

    def mark(s: Score) -> str:
        if s is best:
            return "best"
        if s.mean is None or s.error is None:
            return ""
        return "tie" if mean - s.mean <= max(error, s.error) else ""

    return [replace(s, mark=mark(s)) for s in each]


def number(mean: float | None, std: float | None) -> str:
    """A mean with its deviation in percent: `54.1 ± 0.3`."""
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def markdown(frame: pd.DataFrame) -> str:
    """The table as Markdown: a block a model, a row an entry, a column a noise; best / last, mean ± deviation in %."""
    from cleantune.report.svg import sanitize

    found, lines = scores(frame), ["# Comparison", ""]
    noises = list(dict.fromkeys(noise for _, noise in found))
    by_last = set(frame["chosen"].dropna()) <= {"last"}
    for model in dict.fromkeys(model for model, _ in found):
        lines += [f"## {cell_text(model)}", "", "| Tuning | Method | " + " | ".join(map(cell_text, noises)) + " |"]
        lines.append("|---|---|" + "---|" * len(noises))
        blocks = [found[model, noise] for noise in noises if (model, noise) in found]
        for rank, first in enumerate(blocks[0]):
            cells = [cell_words(block[rank], by_last) for block in blocks]
            lines.append(f"| {first.tuning} | {cell_text(shown(first.entry))} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [*(f"- {sanitize(text)}" for text in legend(frame)), ""]
    failed = frame[frame["status"] == "failed"]
    if len(failed):
        lines += ["Failed:", ""]
        for row in failed.to_dict("records"):
            name = f"{row['entry']} {row['tuning']}, {row['noise']}, {row['model']}, seed {row['seed']}"
            lines.append(f"- {cell_text(name)}: {cell_text(row['reason'])}")
        lines.append("")
    return "\n".join(lines)


def cell_words(score: Score, by_last: bool) -> str:
    """A cell of the Markdown table."""
    if score.mean is None:
        return "failed" if score.failed else "–"
    best, last = number(score.best, score.best_std), number(score.last, score.last_std)
    sign = {"best": "**", "tie": ""}.get(score.mark, "")
    best, last = (best, f"{sign}{last}{sign}") if by_last else (f"{sign}{best}{sign}", last)
    words = f"{best} / {last}" + (" ≈" if score.mark == "tie" else "")
    return words + (f" ({score.failed} failed)" if score.failed else "")


def shown(entry: str) -> str:
    """A method as the papers write it; other names as they are."""
    from cleantune.report.words import METHODS as WRITTEN

    return WRITTEN.get(entry, entry)


def cell_text(value: object) -> str:
    """A name that cannot break a Markdown table or become HTML."""
    from cleantune.report.svg import sanitize

    text = sanitize(value, 200)
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return text


def legend(frame: pd.DataFrame) -> list[str]:
    """What the table says and how it was made, in sentences."""
    seeds, sizes = frame["seed"].nunique(), frame["test_size"].dropna()
    size = f"{int(sizes.iloc[0]):,} test samples" if len(sizes) else "the test split"
    by = ", ".join(sorted(set(frame["chosen"].dropna())))
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    out = [
        f"Test accuracy in %, best / last, {spread}, on {size}. Best: of the epoch with the best accuracy on the noisy"
        " validation split. Last: of the model that the run ends with.",
        f"How the model is chosen, and what entries are ranked by: {by}. No number comes from choosing on test.",
        "**Bold**: the best of a column. ≈: tied with it, inside one standard error, the larger of the seeds'"
        " (std / √n) and of the test split's (√(p (1 − p) / size)).",
    ]
    if frame["rates"].notna().any():
        out.append(
            "Learning rates were tried on the noisy validation split of the first seed, as many for every entry."
        )
    return out
