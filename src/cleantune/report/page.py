"""Turns what a run left behind into the page's parts and sets them into the template."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.errors import UserError
from cleantune.report import figures, tables, words
from cleantune.report.svg import FIRST, SECOND, THIRD, Plot, sanitize
from cleantune.report.templates import render_page
from cleantune.storage.readers import finite, value_at
from cleantune.storage.run_dir import RunDir
from cleantune.utils import format as fmt

if TYPE_CHECKING:
    import pandas as pd

NOISY_CLASSES = 30
SMALL_MULTIPLES = 12
# Title, name of the y axis with its unit, note, and the lines: name, path in a row, color and dashes.
CURVES: tuple[tuple[str, str, str, tuple[tuple[str, ...], ...]], ...] = (
    (
        "Accuracy",
        "accuracy (%)",
        "Validation is measured on given labels, wrong ones among them.",
        (("test", "accuracy_test", FIRST), ("validation", "accuracy_validation", SECOND)),
    ),
    (
        "Quality of the selection",
        "share (AUROC: 0.5 is chance)",
        "Against true labels, which training never saw.",
        (("purity", "purity", FIRST), ("recall", "recall", SECOND), ("AUROC", "auroc", THIRD)),
    ),
    ("Selected samples", "samples", "What an epoch learned from.", (("selected", "selected", FIRST),)),
    (
        "Selected samples per class",
        "samples per class",
        "How evenly the classes are kept.",
        (
            ("largest", "selected_per_class.max", THIRD, "--"),
            ("median", "selected_per_class.median", FIRST),
            ("smallest", "selected_per_class.min", SECOND, "--"),
        ),
    ),
)


def render(run: RunDir) -> str:
    """The whole page as HTML."""
    parts = _about(run) | _noise(run) | _losses(run) | _curves(run) | _confusion(run) | _suspects(run) | _onward(run)
    return render_page("cleantune.report", "page.html", parts | {"run": run, "words": words})


def write(path: Path, page: str) -> Path:
    """Put the page in place whole: a report cut short never stands where one was."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half.open("w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); make room or give write permission, "
                        f"then run `cleantune report {path.parent}`") from error  # fmt: skip
    return path


def _about(run: RunDir) -> dict[str, Any]:
    model, samples = run.get("model") or {}, run.get("samples") or {}
    facts = [
        ("data", words.data_name(run)),
        ("classes", fmt.count(len(run.classes))),
        *(
            (f"{name} samples", fmt.count(finite(size)))
            for name, size in samples.items()
            if name != "unreadable" and size
        ),
        ("model", words.model_name(run)),
        ("architecture", model.get("architecture")),
        ("feature", model.get("feature")),
        ("feature width", _whole(model.get("width"))),
        ("parameters", _whole(model.get("parameters"))),
        ("method", words.method_name(run)),
        ("scope", run.get("scope")),
        ("preset", run.get("preset")),
        ("seed", run.get("seed")),
        ("noise put in", _injected(run)),
        ("arithmetic", run.get("compute.training.dtype")),
    ]
    versions = run.get("versions") or {}
    return {
        "facts": [(name, sanitize(value, 200)) for name, value in facts if value not in (None, "", "–")],
        "settings": tables.settings(run.config),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "verdict": words.verdict(run),
        "tiles": words.tiles(run),
        "notes": [words.sentence(sanitize(note, 600)) for note in run.get("log") or []],
        "warnings": [words.sentence(sanitize(note, 600)) for note in run.get("warnings") or []],
        "skipped": (run.unreadable or [])[:100],
        "skipped_count": len(run.unreadable) if run.unreadable else int(finite(samples.get("unreadable")) or 0),
        "cost": tables.cost(run),
    }


def _whole(value: Any) -> str | None:
    number = finite(value)
    return None if number is None else fmt.count(number)


def _injected(run: RunDir) -> str | None:
    """The noise that was put into clean labels to rehearse, as it was asked for."""
    noise, seed = run.get("noise.injected.noise"), run.get("noise.injected.seed")
    return None if noise is None else f"{noise}, seed {seed}"


def _noise(run: RunDir) -> dict[str, Any]:
    classes = tables.class_noise(run)
    if not classes:
        return {"noise": None, "noise_table": [], "noise_true": False}
    shown = classes[:NOISY_CLASSES]
    known = any(c.true_rate is not None for c in shown)
    cut = f" The {len(shown)} noisiest of {len(classes)} classes are shown." if len(shown) < len(classes) else ""
    ends = (f"{c.name} ({fmt.percent(c.estimated_rate)})" for c in (shown[0], shown[-1]))
    alt = f"Estimated noise rate by class, from {' down to '.join(ends)}."
    note = "Dashed: the rate over all classes." + cut
    svg = figures.noise_by_class(shown, run.number("noise.estimated_rate"), alt)
    return {"noise": Plot("Estimated noise rate by class", svg, note), "noise_table": classes, "noise_true": known}


def _losses(run: RunDir) -> dict[str, Any]:
    parts: dict[str, Any] = {"looks": [], "multiples": [], "multiples_note": "", "losses_truth": False}
    notes = parts["losses_notes"] = []
    if run.losses is None:
        return parts
    train = run.losses[run.losses["split"] == "train"]
    parts["losses_truth"] = "true_label" in train
    shown = run.classes
    if len(shown) > SMALL_MULTIPLES:
        shown = ([c.name for c in tables.class_noise(run)] or shown)[:SMALL_MULTIPLES]
        parts["multiples_note"] = f"The {len(shown)} noisiest of {len(run.classes)} classes are shown."
    for look in ("first", "last"):
        finite_rows = train[np.isfinite(train[f"loss_{look}"].to_numpy(dtype=float))]
        if len(finite_rows) < len(train):
            notes.append(f"{len(train) - len(finite_rows)} losses of the {look} look are not finite and left out.")
        if len(finite_rows):
            whole, multiples = _look(finite_rows, look, (run.mixtures or {}).get(look) or {}, run.classes, shown)
            parts["looks"].append(whole)
            parts["multiples"].append(multiples)
    if not run.mixtures:
        notes.append("No mixtures were kept (artifacts/mixtures.json), so no curves are drawn.")
    return parts


def _look(
    table: pd.DataFrame, look: str, mixtures: dict[str, Any], classes: list[str], shown: list[str]
) -> tuple[Plot, tuple[str, list[Plot]]]:
    """One look's histogram over all classes, and the small ones of the classes shown under their heading."""
    whole = _of_classes(table, look, mixtures, classes)
    root = figures.peaked(whole.values)
    median = f"{np.median(whole.values):.2f}"
    alt = f"Histogram of {len(whole.values)} losses of the {look} look, median {median} nats, with the fitted mixture."
    plot = Plot(f"{look.capitalize()} look, all classes", figures.loss_histogram(whole, f"loss-{look}", alt, root=root))
    small = []
    for index, name in enumerate(shown):
        losses = _of_classes(table[table["given_label"] == name], look, mixtures, [name])
        if len(losses.values):
            alt = f"Losses of class {name}, {look} look."
            svg = figures.loss_histogram(losses, f"loss-{look}-{index}", alt, root=root, small=True)
            small.append(Plot(name, svg))
    scale = ", samples on a root scale" if root else ""
    return plot, (f"{look.capitalize()} look by class{scale}", small)


def _of_classes(table: pd.DataFrame, look: str, mixtures: dict[str, Any], classes: list[str]) -> figures.Losses:
    wrong = (table["given_label"] != table["true_label"]).to_numpy(dtype=bool) if "true_label" in table else None
    sizes = table["given_label"].value_counts()
    fitted = [(int(sizes.get(name, 0)), mixtures[name]) for name in classes if isinstance(mixtures.get(name), dict)]
    return figures.Losses(table[f"loss_{look}"].to_numpy(dtype=float), wrong, fitted)


def _curves(run: RunDir) -> dict[str, Any]:
    """Curves over the epochs; a quantity that was never measured has none."""
    split = "test" if words.accuracy(run, "test") is not None else "validation"
    baseline = run.number(f"baseline.accuracy.{split}")
    selecting = [row for row in run.metrics if finite(row.get("selected")) is not None]
    plots = []
    for number, (title, unit, note, quantities) in enumerate(CURVES):
        whole = title == "Accuracy"
        rows, axis = (run.metrics, "epoch, counted over all phases") if whole else (selecting, "cleansing")
        lines = [figures.Line(name, _over(rows, path), *look) for name, path, *look in quantities]
        measured = [line for line in lines if any(value is not None for value in line.values)]
        if measured:
            level = (f"CE probe, {split}", 100 * baseline) if whole and baseline is not None else None
            ends = ", ".join(f"{line.name} {_last(line):.3g}" for line in measured)
            alt = f"{title} over {len(rows)} {'epochs' if whole else 'cleansings'}; at the end: {ends}."
            phases = [str(row["phase"]) for row in rows]
            svg = figures.over_epochs(measured, phases, unit, f"curve-{number}", alt, level=level, axis=axis)
            plots.append(Plot(title, svg, note))
    return {"curves": plots}


def _over(rows: list[dict[str, Any]], path: str) -> list[float | None]:
    """A quantity by row, accuracies in percent."""
    values = [finite(value_at(row, path)) for row in rows]
    return [100 * v if v is not None and path.startswith("accuracy") else v for v in values]


def _last(line: figures.Line) -> float:
    return next(value for value in reversed(line.values) if value is not None)


def _confusion(run: RunDir) -> dict[str, Any]:
    counts = tables.confusion(run)
    if len(run.classes) <= tables.HEATMAP_CLASSES:
        return {"heatmap": tables.heatmap(counts), "pairs": []}
    return {"heatmap": [], "pairs": tables.top_pairs(run.classes, counts)}


def _suspects(run: RunDir) -> dict[str, Any]:
    shown, dropped = tables.gallery(run)
    listed = run.labels[run.labels["is_label_issue"].astype(bool)]
    check = None
    if "true_label" in run.labels:
        known = run.labels[run.labels["true_label"].notna()]
        wrong, flagged = known["given_label"] != known["true_label"], known["is_label_issue"].astype(bool)
        check = {"flagged": int(flagged.sum()), "hits": int((wrong & flagged).sum()), "wrong": int(wrong.sum())}
    kind = next((str(entry.get("kind")) for entry in run.gallery or []), run.get("kind"))
    return {"gallery": shown, "gallery_dropped": dropped, "kind": kind, "issues": tables.issues(run),
            "issue_count": len(listed), "check": check}  # fmt: skip


def _onward(run: RunDir) -> dict[str, Any]:
    folder = shlex.quote(run.name)
    fit = f"cleantune fit --config {shlex.quote(f'{run.name}/config.toml')} --out"
    command = str(run.get("command") or f"{fit} {folder}").removesuffix(" --resume")
    return {
        "folder": folder,
        "load": f"model = cleantune.load({json.dumps(run.name, ensure_ascii=False)})",
        "again": f"{fit} {shlex.quote(f'{run.name}-again')}",
        "resume": f"{command} --resume",
    }
