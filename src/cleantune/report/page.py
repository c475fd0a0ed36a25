"""Sections of a run's report, as variables of the template `run.html`."""

from __future__ import annotations

import json
import shlex
from typing import Any, NamedTuple

from cleantune.report import figures, tables, wording
from cleantune.report.svg import FIRST, SECOND, THIRD, Plot, sanitize
from cleantune.report.templates import render_page
from cleantune.storage.readers import finite, value_at
from cleantune.storage.run_dir import RunDir
from cleantune.utils.format import count, percent

MAX_CLASSES_IN_CHART = 30
MAX_UNREADABLE = 100


class Quantity(NamedTuple):
    """Line of a curve: name, dotted path in a row of metrics, color and dashes."""

    name: str
    path: str
    color: str
    dashes: str = "-"


class Curve(NamedTuple):
    """Plot over epochs: title, y axis with its unit, note, and lines."""

    title: str
    unit: str
    note: str
    quantities: tuple[Quantity, ...]


ACCURACY = Curve(
    "Accuracy",
    "accuracy (%)",
    "Validation is measured on given labels, some of them wrong.",
    (Quantity("test", "accuracy_test", FIRST), Quantity("validation", "accuracy_validation", SECOND)),
)
SELECTION_CURVES = (
    Curve(
        "Quality of the selection",
        "share (AUROC: 0.5 is chance)",
        "Against true labels, which training never uses.",
        (
            Quantity("purity", "purity", FIRST),
            Quantity("recall", "recall", SECOND),
            Quantity("AUROC", "auroc", THIRD),
        ),
    ),
    Curve("Selected samples", "samples", "Training samples of an epoch.", (Quantity("selected", "selected", FIRST),)),
    Curve(
        "Selected samples per class",
        "samples per class",
        "Balance of the selection over classes.",
        (
            Quantity("largest", "selected_per_class.max", THIRD, "--"),
            Quantity("median", "selected_per_class.median", FIRST),
            Quantity("smallest", "selected_per_class.min", SECOND, "--"),
        ),
    ),
)


def render(run: RunDir) -> str:
    """Return the report of a run as HTML."""
    parts = _overview(run) | _noise(run) | _label_errors(run) | _curves(run) | _confusion(run) | _suspects(run)
    return render_page("cleantune.report", "run.html", parts | {"run": run, "commands": _commands(run)})


def _overview(run: RunDir) -> dict[str, Any]:
    model, samples = run.get("model") or {}, run.get("samples") or {}
    method, data = wording.display_method(str(run.summary["method"])), wording.data_name(run)
    name = wording.model_name(run)
    facts = [
        ("data", data),
        ("classes", count(len(run.classes))),
        *((f"{split} samples", count(finite(n))) for split, n in samples.items() if split != "unreadable" and n),
        ("model", name),
        ("architecture", model.get("architecture")),
        ("feature", model.get("feature")),
        ("feature dimension", count(finite(model.get("width")))),
        ("parameters", count(finite(model.get("parameters")))),
        ("method", method),
        ("scope", run.get("scope")),
        ("preset", run.get("preset")),
        ("seed", run.get("seed")),
        ("injected noise", _injected_noise(run)),
        ("precision", run.get("compute.training.dtype")),
    ]
    versions = run.get("versions") or {}
    unreadable = run.unreadable or []
    return {
        "method": method,
        "data": data,
        "model": name,
        "facts": [(key, sanitize(value, 200)) for key, value in facts if value not in (None, "", "–")],
        "settings": tables.flatten_settings(run.config),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "conclusions": wording.conclusions(run),
        "tiles": wording.tiles(run),
        "notes": [wording.sentence(sanitize(note, 600)) for note in run.get("log") or []],
        "warnings": [wording.sentence(note) for note in run.get("warnings") or []],
        "unreadable": unreadable[:MAX_UNREADABLE],
        "num_unreadable": len(unreadable) or int(finite(samples.get("unreadable")) or 0),
        "cost": tables.cost_rows(run),
    }


def _injected_noise(run: RunDir) -> str | None:
    noise, seed = run.get("noise.injected.noise"), run.get("noise.injected.seed")
    return None if noise is None else f"{noise}, seed {seed}"


def _noise(run: RunDir) -> dict[str, Any]:
    parts = {"noise_sentences": wording.noise_sentences(run)}
    classes = tables.class_noise(run)
    if not classes:
        return parts | {"noise": None, "noise_table": [], "noise_true": False}
    shown = classes[:MAX_CLASSES_IN_CHART]
    has_truth = any(c.true_rate is not None for c in shown)
    note = "Dashed: rate over all classes."
    if len(shown) < len(classes):
        note += f" The {len(shown)} noisiest of {len(classes)} classes are shown."
    ends = (f"{c.name} ({percent(c.estimated_rate)})" for c in (shown[0], shown[-1]))
    alt = f"Estimated noise rate by class, from {' down to '.join(ends)}."
    svg = figures.noise_by_class(shown, run.number("noise.estimated_rate"), alt)
    plot = Plot("Estimated noise rate by class", svg, note)
    return parts | {"noise": plot, "noise_table": classes, "noise_true": has_truth}


def _label_errors(run: RunDir) -> dict[str, Any]:
    """Return the histogram of error probabilities with the threshold of the label issues."""
    labels, wrong = run.labels, None
    p_wrong, threshold = labels["p_wrong"].to_numpy(dtype=float), run.number("issues.threshold")
    if "true_label" in labels:
        wrong = (labels["true_label"].notna() & (labels["given_label"] != labels["true_label"])).to_numpy(dtype=bool)
    num_issues = int(labels["is_label_issue"].sum())
    alt = f"Histogram of the error probability of {len(labels)} labels; {num_issues} are label issues."
    svg = figures.probability_histogram(p_wrong, wrong, threshold, "p-wrong", alt)
    return {
        "p_wrong": Plot("Probability of a label error", svg),
        "threshold": threshold,
        "p_wrong_true": wrong is not None,
    }


def _curves(run: RunDir) -> dict[str, Any]:
    """Return the curves over epochs; a quantity without measurements has none."""
    split = "test" if wording.accuracy(run, "test") is not None else "validation"
    baseline = run.number(f"baseline.accuracy.{split}")
    level = None if baseline is None else (f"CE probe, {split}", 100 * baseline)
    rows = run.metrics
    selections = [row for row in rows if finite(row.get("selected")) is not None]
    plots = [_curve(ACCURACY, rows, "epoch, over all phases", "curve-0", level)]
    plots += [_curve(c, selections, "selection", f"curve-{k}") for k, c in enumerate(SELECTION_CURVES, start=1)]
    return {"curves": [plot for plot in plots if plot is not None]}


def _curve(
    curve: Curve, rows: list[dict[str, Any]], axis: str, name: str, level: tuple[str, float] | None = None
) -> Plot | None:
    lines = [figures.Line(q.name, _values(rows, q.path), q.color, q.dashes) for q in curve.quantities]
    measured = [line for line in lines if any(value is not None for value in line.values)]
    if not measured:
        return None
    ends = ", ".join(f"{line.name} {_last(line):.3g}" for line in measured)
    alt = f"{curve.title} over {len(rows)} {axis.split(',')[0]}s; at the end: {ends}."
    phases = [str(row["phase"]) for row in rows]
    return Plot(
        curve.title, figures.over_epochs(measured, phases, curve.unit, name, alt, level=level, axis=axis), curve.note
    )


def _values(rows: list[dict[str, Any]], path: str) -> list[float | None]:
    """Return a quantity of each row, accuracies in percent."""
    values = [finite(value_at(row, path)) for row in rows]
    return [100 * v if v is not None and path.startswith("accuracy") else v for v in values]


def _last(line: figures.Line) -> float:
    return next(value for value in reversed(line.values) if value is not None)


def _confusion(run: RunDir) -> dict[str, Any]:
    counts = tables.confusion(run)
    if len(run.classes) <= tables.MAX_HEATMAP_CLASSES:
        return {"heatmap": tables.heatmap(counts), "pairs": []}
    return {"heatmap": [], "pairs": tables.top_pairs(run.classes, counts)}


def _suspects(run: RunDir) -> dict[str, Any]:
    samples, num_dropped = tables.gallery_samples(run.gallery or [])
    check = None
    if "true_label" in run.labels:
        labels = run.labels[run.labels["true_label"].notna()]
        wrong, flagged = labels["given_label"] != labels["true_label"], labels["is_label_issue"].astype(bool)
        check = {"flagged": int(flagged.sum()), "hits": int((wrong & flagged).sum()), "wrong": int(wrong.sum())}
    kind = next((str(entry.get("kind")) for entry in run.gallery or []), run.get("kind"))
    return {
        "samples": samples,
        "num_dropped_pictures": num_dropped,
        "kind": kind,
        "issues": tables.issues(run),
        "num_issues": int(run.labels["is_label_issue"].astype(bool).sum()),
        "check": check,
    }


def _commands(run: RunDir) -> list[tuple[str, str]]:
    name = run.path.resolve().name
    folder = shlex.quote(name)
    fit = f"cleantune fit --config {shlex.quote(f'{name}/config.toml')} --out"
    command = str(run.get("command") or f"{fit} {folder}").removesuffix(" --resume")
    load = f"model = cleantune.load({json.dumps(name, ensure_ascii=False)})"
    return [
        ("Review the label issues", f"cleantune review {folder}"),
        ("Predict the labels of new data", f"cleantune predict {folder} DATA"),
        ("Use the model in Python", f"import cleantune\n{load}\nmodel.predict(samples)"),
        ("Read all labels, worst first", f"{name}/labels.csv"),
        ("Build this page again", f"cleantune report {folder}"),
        ("Repeat the run", f"{fit} {shlex.quote(f'{name}-again')}"),
        ("Resume the run after an interruption", sanitize(f"{command} --resume")),
    ]
