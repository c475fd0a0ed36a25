"""Evaluate finished runs on their own test split and on data of other domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from cleantune.config.run import configure, load_toml, read_config
from cleantune.data import LabeledEvalSet, load_labeled_eval_set
from cleantune.errors import UserError, did_you_mean
from cleantune.functional import metrics
from cleantune.pipeline.predict import Model, load
from cleantune.pipeline.resolve import load_data
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

IN_DOMAIN = "in-domain"
"""Domain of a run's own test split."""
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "pearson", "calibration_error")


def evaluate(
    runs: str | Path | Sequence[str | Path],
    ood: Sequence[Any] = (),
    *,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    domain_column: str | None = None,
    class_map: Mapping[str, str] | str | Path | None = None,
    subset: bool = False,
    quiet: bool = True,
) -> pd.DataFrame:
    """Evaluate each run on its test split and on each domain of other data.

    Args:
        runs: Folder of a finished run, or several.
        ood: Data of other domains, in any form that `fit` takes; all rows are used, or those of a split `test`.
        text: Column of texts in these data; columns are inferred by default.
        image: Column of images.
        label: Column of labels, which are class names of the run unless there is a class map.
        domain_column: Column with the domain of each row; default: each data set is one domain.
        class_map: Labels of the other data by class of the run, many to one, as a mapping or a TOML file; the score of
            a label is the maximum over its classes, and other classes are never predicted.
        subset: Restrict predictions in a domain to the classes that occur there (as for ImageNet-A and -R).
        quiet: Print nothing.

    Returns:
        One row per run and domain: `run`, `method`, `data`, `domain`, `samples`, `accuracy`, `balanced_accuracy` (over
        the classes that occur), `macro_f1`, `mcc`, `pearson` (of expected value and label, if classes are numbers),
        `calibration_error`. The run's own test split has the domain `in-domain`.

    Raises:
        UserError: A run, column or class is missing or does not fit; the message names it.

    Source: class subsets and several-to-one maps as for the ImageNet variants in arXiv:2309.17002.
    """
    import pandas as pd

    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    mapping = read_class_map(class_map)
    console, rows = Console(quiet), []
    read: dict[int, LabeledEvalSet] = {}
    for folder in folders:
        model = load(folder)
        if model.run is None:
            raise UserError(f"{folder} is a model without its run: name the folder that --out was")
        method = read_config(folder / "config.toml").get("method", {})
        frozen = method.get("scope") == "head"
        shared = {"run": str(folder), "method": method.get("name", "robust")}
        test_row = _evaluate_test_split(model, folder, console, frozen)
        rows += [] if test_row is None else [shared | test_row]
        for k, data in enumerate(ood):
            if k not in read:
                read[k] = load_labeled_eval_set(
                    data, _kind(model), text=text, image=image, label=label, domain=domain_column
                )
                for note in read[k].notes:
                    console.info(note)
            rows += [shared | row for row in _evaluate_domains(model, read[k], mapping, subset, frozen)]
    return pd.DataFrame(rows)


def read_class_map(source: Mapping[str, str] | str | Path | None) -> dict[str, str] | None:
    """Return a class map from a mapping or a TOML file of names.

    Raises:
        UserError: The file is missing, not TOML, or contains something other than names.
    """
    if source is None:
        return None
    if not isinstance(source, Mapping):
        source = load_toml(Path(source), f"no class map {source}")
    wrong = next((k for k, v in source.items() if not isinstance(v, str | int)), None)
    if wrong is not None or not source:
        raise UserError(f'a class map has lines such as "tabby cat" = "cat"; {wrong or "there is none"} is not one')
    return {str(k): str(v) for k, v in source.items()}


def pool_classes(
    p: Float[np.ndarray, "N C"], classes: Sequence[str], mapping: Mapping[str, str] | None, only: Sequence[str] | None
) -> tuple[Float[np.ndarray, "N T"], tuple[str, ...]]:
    """Return the probabilities of the allowed labels, and these labels.

    Args:
        p: Probabilities of the model's classes.
        classes: Names of the classes.
        mapping: Labels by class; None: classes are labels.
        only: Allowed labels; None: all.

    Raises:
        UserError: The map names a class that the model lacks.
    """
    if mapping is not None:
        unknown = next((name for name in mapping if name not in classes), None)
        if unknown is not None:
            raise UserError(f'the class map names "{unknown}", no class of the model{did_you_mean(unknown, classes)}')
    labels = [mapping.get(name) if mapping is not None else name for name in classes]
    targets = tuple(t for t in dict.fromkeys(labels) if t is not None and (only is None or t in only))
    scores = np.stack([p[:, [c for c, t in enumerate(labels) if t == target]].max(1) for target in targets], axis=1)
    scores = np.maximum(scores.astype(np.float64), 1e-300)
    return scores / scores.sum(1, keepdims=True), targets


def measure(
    p: Float[np.ndarray, "N C"], y: Int[np.ndarray, " N"], targets: Sequence[str]
) -> dict[str, float | int | None]:
    """Return all metrics of one domain."""
    predicted = p.argmax(1)
    numbers = _numbers(targets)
    return {
        "samples": len(y),
        "accuracy": metrics.accuracy(predicted, y),
        "balanced_accuracy": metrics.balanced_accuracy(predicted, y),
        "macro_f1": metrics.macro_f1(predicted, y),
        "mcc": metrics.matthews_corrcoef(predicted, y),
        "pearson": None if numbers is None else metrics.pearson(p @ numbers, numbers[y]),
        "calibration_error": metrics.calibration_error(p, y),
    }


def _numbers(targets: Sequence[str]) -> Float[np.ndarray, " C"] | None:
    try:
        return np.array([float(t) for t in targets])
    except ValueError:
        return None


def _kind(model: Model) -> Any:
    backbone = model.members[0].backbone
    return "features" if backbone is None else backbone.architecture.kind


def _evaluate_test_split(model: Model, folder: Path, console: Console, frozen: bool) -> dict[str, Any] | None:
    """Return the row of the run's own test split, or None if there is none or its data are gone."""
    try:
        data, _ = load_data(configure(read_config(folder / "config.toml")), Console(quiet=True))
    except UserError as error:
        console.info(f"{folder}: its own test split cannot be evaluated: {error}")
        return None
    if "test" not in data.rows:
        return None
    rows = data.rows["test"]
    row = measure(model.probabilities(rows, cached=frozen).astype(np.float64), rows.y, model.classes)
    return {"data": "its own", "domain": IN_DOMAIN} | row


def _evaluate_domains(
    model: Model, data: LabeledEvalSet, mapping: Mapping[str, str] | None, subset: bool, frozen: bool
) -> list[dict[str, Any]]:
    """Return a row per domain of one data set."""
    refuse_unknown(data, model.classes, mapping)
    p = model.probabilities(data.rows, cached=frozen)
    results = by_domain(p, model.classes, data, mapping, subset)
    return [{"data": data.name, "domain": domain} | row for domain, row in results.items()]


def refuse_unknown(data: LabeledEvalSet, classes: Sequence[str], mapping: Mapping[str, str] | None) -> None:
    """Refuse labels without a class.

    Raises:
        UserError: The message names the first such label.
    """
    allowed = tuple(mapping.values()) if mapping is not None else tuple(classes)
    used = [data.names[c] for c in np.unique(data.codes)]
    unknown = next((name for name in used if name not in allowed), None)
    if unknown is not None:
        remedy = "" if mapping else "; map classes to its labels with --map"
        raise UserError(
            f'{data.name}: the label "{unknown}" is no class of the run{did_you_mean(unknown, allowed)}{remedy}'
        )


def by_domain(
    p: Float[np.ndarray, "N C"],
    classes: Sequence[str],
    data: LabeledEvalSet,
    mapping: Mapping[str, str] | None,
    subset: bool,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each domain.

    Args:
        p: Probabilities of the classes.
        classes: Names of the classes.
        data: Rows that `refuse_unknown` accepts.
        mapping: Labels by class; None: classes are labels.
        subset: Restrict predictions in a domain to the labels that occur there.
    """
    out = {}
    for domain in dict.fromkeys(data.domains.tolist()):
        rows = data.domains == domain
        names = [data.names[c] for c in data.codes[rows]]
        scores, targets = pool_classes(p[rows], classes, mapping, sorted(set(names)) if subset else None)
        index = {name: t for t, name in enumerate(targets)}
        out[domain] = measure(scores, np.array([index[name] for name in names], np.int64), targets)
    return out


def table(frame: pd.DataFrame) -> str:
    """Return the rows as text, followed by means over domains by method, with the standard deviation over runs."""
    several, lines = frame["run"].nunique() > 1, []
    columns = [c for c in METRICS if frame[c].notna().any()]
    heads = ["run", "domain", "samples", *columns] if several else ["domain", "samples", *columns]
    for row in frame.to_dict("records"):
        cells = [Path(row["run"]).name] if several else []
        cells += [str(row["domain"]), f"{row['samples']:,}", *(_cell(row[c]) for c in columns)]
        lines.append(cells)
    other = frame[frame["domain"] != IN_DOMAIN]
    for title, part in (("in-domain", frame[frame["domain"] == IN_DOMAIN]), ("out of domain", other)):
        if not len(part) or (not several and part["domain"].nunique() < 2):
            continue
        means = part.groupby(["method", "run"], sort=False)[columns].mean()
        for method, block in means.groupby("method", sort=False):
            spread = [f" ± {100 * block[c].std():.1f}" if len(block) > 1 else "" for c in columns]
            numbers = [_cell(block[c].mean()) + s for c, s in zip(columns, spread, strict=True)]
            lines.append([*([str(method)] if several else []), f"mean {title}", "", *numbers])
    widths = [max(len(line[k]) for line in [heads, *lines]) for k in range(len(heads))]
    rows = (
        "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in [heads, *lines]
    )
    return "\n".join(rows)


def _cell(value: Any) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"
