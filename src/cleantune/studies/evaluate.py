"""Finished runs measured on their own test split and on data of other domains: one row a run and domain."""

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
"""The domain of a run's own test split."""
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "pearson", "calibration_error")


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
    """Accuracy and more of each run on its test split and on each domain of other data.

    Args:
        runs: Folders of finished runs, one or several.
        ood: Data of other domains, in any form that `fit` takes; every row counts, or the part `test`.
        text: Column of texts in these; guessed when left out, as all columns are.
        image: Column of images.
        label: Column of labels; they are classes of the run by name, unless a class map says otherwise.
        domain_column: Column that divides the rows into domains; left out: each data set is one.
        class_map: From classes of the run to the labels of the other data, many to one, a mapping or a TOML file; the
            score of a label is the largest of its classes', and classes that are not named do not compete.
        subset: Only classes that occur among a domain's labels compete there (as for ImageNet-A and -R).
        silent: Say nothing.

    Returns:
        One row a run and domain: `run`, `method`, `data`, `domain`, `samples`, `accuracy`, `balanced_accuracy` (mean of
        the classes that occur), `macro_f1`, `mcc`, `pearson` (where classes are numbers: of expected number and label),
        `calibration_error`. The run's own test split has the domain `in-domain`.

    Raises:
        UserError: A run, column or class is missing or does not fit; the sentence names it.

    Source: class subsets and many-to-one maps as for the ImageNet variants in arXiv:2309.17002 (nmtune spec 1.3).
    """
    import pandas as pd

    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    mapping = read_map(class_map)
    console, rows = Console(quiet), []
    read: dict[int, LabeledEvalSet] = {}
    for folder in folders:
        model = load(folder)
        if model.run is None:
            raise UserError(f"{folder} is a model without its run: name the folder that --out was")
        settings = read_config(folder / "config.toml").get("method", {})
        frozen = settings.get("scope") == "head"
        shared = {"run": str(folder), "method": settings.get("name", "robust")}
        own = _own(model, folder, console, frozen)
        rows += [] if own is None else [shared | own]
        for k, data in enumerate(ood):
            if k not in read:
                read[k] = load_labeled_eval_set(
                    data, _kind(model), text=text, image=image, label=label, domain=domain_column
                )
                for note in read[k].notes:
                    console.info(note)
            rows += [shared | row for row in _of(model, read[k], mapping, subset, frozen)]
    return pd.DataFrame(rows)


def read_map(given: Mapping[str, str] | str | Path | None) -> dict[str, str] | None:
    """A class map from a mapping or a TOML file of names.

    Raises:
        UserError: The file is missing, not TOML, or holds something else than names.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        given = load_toml(Path(given), f"no class map {given}")
    wrong = next((k for k, v in given.items() if not isinstance(v, str | int)), None)
    if wrong is not None or not given:
        raise UserError(f'a class map has lines such as "tabby cat" = "cat"; {wrong or "there is none"} is not one')
    return {str(k): str(v) for k, v in given.items()}


def pooled(
    p: Float[np.ndarray, "N C"], classes: Sequence[str], mapping: Mapping[str, str] | None, only: Sequence[str] | None
) -> tuple[Float[np.ndarray, "N T"], tuple[str, ...]]:
    """Probabilities of the labels that compete, and these.

    Args:
        p: Of the model's classes.
        classes: Their names.
        mapping: From classes to labels; None: classes are labels.
        only: Labels that may compete; None: all.

    Raises:
        UserError: The map names a class that the model does not have.
    """
    if mapping is not None:
        unknown = next((name for name in mapping if name not in classes), None)
        if unknown is not None:
            raise UserError(f'the class map names "{unknown}", no class of the model{did_you_mean(unknown, classes)}')
    of = [mapping.get(name) if mapping is not None else name for name in classes]
    targets = tuple(t for t in dict.fromkeys(of) if t is not None and (only is None or t in only))
    found = np.stack([p[:, [c for c, t in enumerate(of) if t == target]].max(1) for target in targets], axis=1)
    found = np.maximum(found.astype(np.float64), 1e-300)
    return found / found.sum(1, keepdims=True), targets


def measured(
    p: Float[np.ndarray, "N C"], y: Int[np.ndarray, " N"], targets: Sequence[str]
) -> dict[str, float | int | None]:
    """All numbers of one domain."""
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


def _own(model: Model, folder: Path, console: Console, frozen: bool) -> dict[str, Any] | None:
    """The row of the run's own test split, or None where it has none or its data are gone."""
    try:
        data, _ = load_data(configure(read_config(folder / "config.toml")), Console(quiet=True))
    except UserError as error:
        console.info(f"{folder}: its own test split cannot be measured: {error}")
        return None
    if "test" not in data.rows:
        return None
    rows = data.rows["test"]
    row = measured(model.probabilities(rows, cached=frozen).astype(np.float64), rows.y, model.classes)
    return {"data": "its own", "domain": IN_DOMAIN} | row


def _of(
    model: Model, data: LabeledEvalSet, mapping: Mapping[str, str] | None, subset: bool, frozen: bool
) -> list[dict[str, Any]]:
    """A row a domain of one data set."""
    refuse_unknown(data, model.classes, mapping)
    p = model.probabilities(data.rows, cached=frozen)
    found = by_domain(p, model.classes, data, mapping, subset)
    return [{"data": data.name, "domain": domain} | row for domain, row in found.items()]


def refuse_unknown(data: LabeledEvalSet, classes: Sequence[str], mapping: Mapping[str, str] | None) -> None:
    """Labels that no class stands for are an error.

    Raises:
        UserError: It names the first.
    """
    known = tuple(mapping.values()) if mapping is not None else tuple(classes)
    used = [data.names[c] for c in np.unique(data.codes)]
    unknown = next((name for name in used if name not in known), None)
    if unknown is not None:
        remedy = "" if mapping else "; map classes to its labels with --map"
        raise UserError(
            f'{data.name}: the label "{unknown}" is no class of the run{did_you_mean(unknown, known)}{remedy}'
        )


def by_domain(
    p: Float[np.ndarray, "N C"],
    classes: Sequence[str],
    data: LabeledEvalSet,
    mapping: Mapping[str, str] | None,
    subset: bool,
) -> dict[str, dict[str, Any]]:
    """The numbers of each domain of judged rows.

    Args:
        p: Probabilities of the classes.
        classes: Their names.
        data: The rows; `refuse_unknown` has let them pass.
        mapping: From classes to labels; None: classes are labels.
        subset: Only labels that occur in a domain compete there.
    """
    out = {}
    for domain in dict.fromkeys(data.domains.tolist()):
        here = data.domains == domain
        names = [data.names[c] for c in data.codes[here]]
        scores, targets = pooled(p[here], classes, mapping, sorted(set(names)) if subset else None)
        number = {name: t for t, name in enumerate(targets)}
        out[domain] = measured(scores, np.array([number[name] for name in names], np.int64), targets)
    return out


def table(frame: pd.DataFrame) -> str:
    """The rows as text, and below it the means over other domains, by method with their deviation over runs."""
    many, lines = frame["run"].nunique() > 1, []
    columns = [c for c in SHOWN if frame[c].notna().any()]
    heads = ["run", "domain", "samples", *columns] if many else ["domain", "samples", *columns]
    for row in frame.to_dict("records"):
        cells = [Path(row["run"]).name] if many else []
        cells += [str(row["domain"]), f"{row['samples']:,}", *(_cell(row[c]) for c in columns)]
        lines.append(cells)
    other = frame[frame["domain"] != IN_DOMAIN]
    for title, part in (("in-domain", frame[frame["domain"] == IN_DOMAIN]), ("out of domain", other)):
        if not len(part) or (not many and part["domain"].nunique() < 2):
            continue
        means = part.groupby(["method", "run"], sort=False)[columns].mean()
        for method, block in means.groupby("method", sort=False):
            spread = [f" ± {100 * block[c].std():.1f}" if len(block) > 1 else "" for c in columns]
            numbers = [_cell(block[c].mean()) + s for c, s in zip(columns, spread, strict=True)]
            lines.append([*([str(method)] if many else []), f"mean {title}", "", *numbers])
    widths = [max(len(line[k]) for line in [heads, *lines]) for k in range(len(heads))]
    rows = (
        "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in [heads, *lines]
    )
    return "\n".join(rows)


def _cell(value: Any) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"
