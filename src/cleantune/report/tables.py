"""Tables of the report: noise by class, label confusion, suspicious samples, cost and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleantune.report.figures import ClassNoise
from cleantune.report.svg import sanitize
from cleantune.storage.readers import finite
from cleantune.storage.run_dir import RunDir
from cleantune.utils.format import count, duration, memory, probability

MAX_HEATMAP_CLASSES = 20
MAX_PAIRS = 30
MAX_ISSUES = 2000
MAX_PICTURE_BYTES = 1_200_000
"""Size of all pictures of a page; later ones are left out."""
PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")

COST_ITEMS = (
    ("forward_passes", "forward passes", "an evaluation pass costs 1, a training pass through the backbone 3"),
    ("evaluation_forward_passes", "forward passes of evaluation", "validation and test; not in the row above"),
    ("training_samples", "training samples", ""),
    ("optimizer_steps", "optimizer steps", ""),
)
"""Key of `cost` in summary.json, name and remark."""
TIMES = {"extract": "feature extraction", "probe": "probe", "score": "scoring", "tune": "fine-tuning"}
"""Display names of the parts of the running time."""


class Cell(NamedTuple):
    """Cell of the label confusion."""

    samples: int
    share: float
    """Fraction of the samples with this given label."""
    shade: float
    """Share relative to the largest disagreement, 0 to 1."""
    agrees: bool


class Pair(NamedTuple):
    """Given label and suggested label that disagree."""

    given: str
    suggested: str
    samples: int
    share: float
    """Fraction of the samples with this given label."""


class GallerySample(NamedTuple):
    """Sample of the gallery or of the table of label issues, as text."""

    id: str
    split: str
    given: str
    suggested: str
    score: str
    truth: str | None
    picture: str | None = None
    text: str | None = None


def class_noise(run: RunDir) -> list[ClassNoise]:
    """Return the noise rate of every class with an estimate, noisiest first."""
    per_class = run.get("noise.per_class")
    out = []
    for name, entry in (per_class if isinstance(per_class, dict) else {}).items():
        rate = finite(entry.get("estimated_rate")) if isinstance(entry, Mapping) else None
        if rate is not None:
            out.append(ClassNoise(str(name), rate, finite(entry.get("true_rate")), finite(entry.get("size"))))
    return sorted(out, key=lambda c: (-c.estimated_rate, c.name))


def confusion(run: RunDir) -> NDArray[np.int64]:
    """Return the counts of given (rows) and suggested labels (columns), [C, C]."""
    place = {name: index for index, name in enumerate(run.classes)}
    counts = np.zeros((len(place), len(place)), dtype=np.int64)
    rows = run.labels["given_label"].map(place)
    columns = run.labels["suggested_label"].map(place)
    both = rows.notna() & columns.notna()
    np.add.at(counts, (rows[both].to_numpy(dtype=np.int64), columns[both].to_numpy(dtype=np.int64)), 1)
    return counts


def heatmap(counts: NDArray[np.int64]) -> list[list[Cell]]:
    """Return the confusion as cells; only disagreements have a shade."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    off = share * ~np.eye(len(counts), dtype=bool)
    top = float(off.max(initial=0)) or 1.0
    return [
        [Cell(int(counts[i, j]), float(share[i, j]), float(off[i, j]) / top, i == j) for j in range(len(counts))]
        for i in range(len(counts))
    ]


def top_pairs(classes: list[str], counts: NDArray[np.int64], limit: int = MAX_PAIRS) -> list[Pair]:
    """Return the most frequent disagreements, most frequent first."""
    off = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:limit]
    totals = np.maximum(counts.sum(1), 1)
    pairs = [divmod(int(flat), len(counts)) for flat in order]
    return [Pair(classes[i], classes[j], int(off[i, j]), float(off[i, j] / totals[i])) for i, j in pairs if off[i, j]]


def gallery_samples(entries: Iterable[Mapping[str, Any]]) -> tuple[list[GallerySample], int]:
    """Return the samples of a gallery, and the number of pictures left out to limit the size of the page.

    Args:
        entries: Rows of `artifacts/gallery.json`.
    """
    samples, size, num_dropped = [], 0, 0
    for entry in entries:
        picture = entry.get("thumbnail")
        if not (isinstance(picture, str) and PICTURE.fullmatch(picture)):
            picture = None
        elif size + len(picture) > MAX_PICTURE_BYTES:
            picture, num_dropped = None, num_dropped + 1
        size += len(picture or "")
        samples.append(_sample(entry)._replace(picture=picture, text=_text(entry.get("text"), 400)))
    return samples, num_dropped


def issues(run: RunDir) -> list[GallerySample]:
    """Return the label issues, worst first, at most `MAX_ISSUES`."""
    table = run.labels[run.labels["is_label_issue"].astype(bool)].head(MAX_ISSUES)
    return [_sample(row) for row in table.to_dict("records")]


def cost_rows(run: RunDir) -> list[tuple[str, str, str]]:
    """Return item, value and remark of everything the run spent."""
    train = run.number("samples.train") or 0
    out = []
    for key, name, remark in COST_ITEMS:
        value = run.number(f"cost.{key}")
        if value is not None:
            times = f"{value / train:.1f} × training set" if train and key != "optimizer_steps" else ""
            out.append((name, count(value), "; ".join(part for part in (times, remark) if part)))
    seconds = run.get("cost.seconds")
    for key, value in (seconds if isinstance(seconds, dict) else {}).items():
        if key != "total":
            out.append((f"time: {TIMES.get(key, key)}", duration(finite(value)), ""))
    out.append(("time: CE linear probe", duration(run.number("baseline.seconds")), "baseline"))
    out.append(("total time", duration(run.number("cost.seconds.total")), ""))
    out.append(("peak memory", memory(run.number("cost.peak_bytes")), ""))
    return [row for row in out if row[1] != "–"]


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a configuration as (dotted key, TOML value), in its order, scalars before tables."""
    flat = [
        (f"{prefix}{key}", sanitize(json.dumps(value, ensure_ascii=False, default=str), 300))
        for key, value in config.items()
        if not isinstance(value, Mapping)
    ]
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat += flatten_settings(value, f"{prefix}{key}.")
    return flat


def _sample(row: Mapping[Any, Any]) -> GallerySample:
    score = row.get("label_score")
    return GallerySample(
        id=sanitize(row.get("id"), 80),
        split=sanitize(row.get("split", "")),
        given=sanitize(row.get("given_label"), 60),
        suggested=sanitize(row.get("suggested_label"), 60),
        score=probability(None if score is None else finite(float(score))),
        truth=_text(row.get("true_label"), 60),
    )


def _text(value: Any, limit: int) -> str | None:
    return None if value is None or value != value else sanitize(value, limit)  # NaN differs from itself
