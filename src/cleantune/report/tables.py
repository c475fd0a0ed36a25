"""The report's tables: noise by class, confusion of labels, suspects, cost and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleantune.report.figures import ClassNoise
from cleantune.report.svg import sanitize
from cleantune.storage.readers import finite
from cleantune.storage.run_dir import RunDir
from cleantune.utils import format as fmt

HEATMAP_CLASSES = 20
PAIRS = 30
SUSPECTS = 2000
PICTURE_BYTES = 1_200_000
PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


class Cell(NamedTuple):
    """One cell of the confusion table."""

    samples: int
    share: float
    """Of the samples with this given label."""
    shade: float
    """0..1, relative to the largest disagreement."""
    agrees: bool


class Pair(NamedTuple):
    """A given label and what is suggested in its place."""

    given: str
    suggested: str
    samples: int
    share: float
    """Of the samples with this given label."""


class Suspect(NamedTuple):
    """One sample of the gallery or of the list of issues."""

    id: str
    split: str
    given: str
    suggested: str
    score: str
    truth: str | None
    picture: str | None = None
    text: str | None = None


def class_noise(run: RunDir) -> list[ClassNoise]:
    """The noise of every class that has an estimate, noisiest first."""
    per_class = run.get("noise.per_class")
    found = []
    for name, entry in (per_class if isinstance(per_class, dict) else {}).items():
        rate = finite(entry.get("estimated_rate")) if isinstance(entry, Mapping) else None
        if rate is not None:
            found.append(ClassNoise(str(name), rate, finite(entry.get("true_rate")), finite(entry.get("size"))))
    return sorted(found, key=lambda c: (-c.estimated_rate, c.name))


def confusion(run: RunDir) -> NDArray[np.int64]:
    """Counts of given (rows) against suggested labels (columns), in the order of the classes."""
    place = {name: index for index, name in enumerate(run.classes)}
    counts = np.zeros((len(place), len(place)), dtype=np.int64)
    rows = run.labels["given_label"].map(place)
    columns = run.labels["suggested_label"].map(place)
    both = rows.notna() & columns.notna()
    np.add.at(counts, (rows[both].to_numpy(dtype=np.int64), columns[both].to_numpy(dtype=np.int64)), 1)
    return counts


def heatmap(counts: NDArray[np.int64]) -> list[list[Cell]]:
    """The confusion as cells; what agrees is counted but not shaded, since disagreement is the question."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    off = share * ~np.eye(len(counts), dtype=bool)
    top = float(off.max(initial=0)) or 1.0
    return [
        [Cell(int(counts[i, j]), float(share[i, j]), float(off[i, j]) / top, i == j) for j in range(len(counts))]
        for i in range(len(counts))
    ]


def top_pairs(classes: list[str], counts: NDArray[np.int64], limit: int = PAIRS) -> list[Pair]:
    """The most frequent disagreements, most frequent first."""
    off = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:limit]
    totals = np.maximum(counts.sum(1), 1)
    found = []
    for flat in order:
        i, j = divmod(int(flat), len(counts))
        if off[i, j]:
            found.append(Pair(classes[i], classes[j], int(off[i, j]), float(off[i, j] / totals[i])))
    return found


def gallery(run: RunDir) -> tuple[list[Suspect], int]:
    """The most suspicious samples, and how many pictures were left out to keep the page small."""
    suspects, spent, dropped = [], 0, 0
    for entry in run.gallery or []:
        picture = entry.get("thumbnail")
        if not (isinstance(picture, str) and PICTURE.fullmatch(picture)):
            picture = None
        elif spent + len(picture) > PICTURE_BYTES:
            picture, dropped = None, dropped + 1
        spent += len(picture or "")
        text = entry.get("text")
        suspects.append(
            Suspect(
                id=sanitize(entry.get("id"), 80),
                split=sanitize(entry.get("split", "")),
                given=sanitize(entry.get("given_label"), 60),
                suggested=sanitize(entry.get("suggested_label"), 60),
                score=score(entry.get("label_score")),
                truth=_truth(entry.get("true_label")),
                picture=picture,
                text=None if text is None else sanitize(text, 400),
            )
        )
    return suspects, dropped


def issues(run: RunDir) -> list[Suspect]:
    """The labels listed as issues, worst first, at most `SUSPECTS`."""
    table = run.labels[run.labels["is_label_issue"].astype(bool)].head(SUSPECTS)
    truths = table["true_label"] if "true_label" in table else [None] * len(table)
    columns = (table[name] for name in ("id", "split", "given_label", "suggested_label", "label_score"))
    return [
        Suspect(sanitize(i, 80), sanitize(split), sanitize(given, 60), sanitize(new, 60), score(p), _truth(t))
        for i, split, given, new, p, t in zip(*columns, truths, strict=True)
    ]


def score(value: Any) -> str:
    """A label score with three digits; small ones are not rounded to nothing."""
    number = finite(float(value)) if value is not None else None
    if number is None:
        return "–"
    return "< 0.001" if 0 < number < 0.0005 else f"{number:.3f}"


def cost(run: RunDir) -> list[tuple[str, str, str]]:
    """(what, how much, remark) of everything the run spent."""
    train = run.number("samples.train") or 0
    listed = [
        ("forward_passes", "forward_passes", "looked at counts 1, trained on through the backbone 3"),
        ("evaluation_forward_passes", "forward_passes of evaluation", "validation and test, not in the row above"),
        ("training_samples", "samples trained on", ""),
        ("optimizer_steps", "optimizer steps", ""),
    ]
    found = []
    for key, name, remark in listed:
        value = run.number(f"cost.{key}")
        if value is not None:
            times = f"{value / train:.1f} × training set" if train and key != "optimizer_steps" else ""
            found.append((name, fmt.count(value), "; ".join(part for part in (times, remark) if part)))
    seconds = run.get("cost.seconds")
    names = {
        "extract": "features extracted",
        "probe": "probe",
        "score": "looks at all samples",
        "evaluate": "evaluation",
        "tune": "fine-tuning",
    }
    for key, value in (seconds if isinstance(seconds, dict) else {}).items():
        if key != "total" and finite(value) is not None:
            found.append((f"time: {names.get(key, key)}", fmt.duration(finite(value)), ""))
    found.append(("time: CE linear probe", fmt.duration(run.number("baseline.seconds")), "the baseline"))
    found.append(("time in all", fmt.duration(run.number("cost.seconds.total")), ""))
    found.append(("peak memory", fmt.memory(run.number("cost.peak_bytes")), ""))
    return [row for row in found if row[1] != "–"]


def settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The resolved config as (dotted key, value as TOML spells it) in its own order, scalars before tables."""
    flat = [(f"{prefix}{key}", _toml(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat += settings(value, f"{prefix}{key}.")
    return flat


def _truth(value: Any) -> str | None:
    return None if value is None or value != value else sanitize(value, 60)  # NaN alone differs from itself


def _toml(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return sanitize(text, 300)
