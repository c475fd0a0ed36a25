"""Table of labels: the labels of train and validation with their scores, worst first, for `fit` and `audit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cleantune.data import Data
from cleantune.label_quality.scores import LabelScores
from cleantune.storage.files import write_table
from cleantune.storage.run_dir import RunDir
from cleantune.utils.arrays import object_array

LABELED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class LabelTable:
    """Given labels with their ids, splits and classes."""

    ids: Shaped[np.ndarray, " N"]
    split: Shaped[np.ndarray, " N"]
    y: Int[np.ndarray, " N"]
    """Given labels as class numbers."""
    true_y: Int[np.ndarray, " N"] | None
    """True labels, -1 where one is not known; None where none is."""
    class_names: tuple[str, ...]
    class_values: tuple[Any, ...]
    """Labels as the data write them, by class number."""
    content_column: str | None = None
    """Name of the column that shows the samples: `text` or `image`."""
    content: Shaped[np.ndarray, " N"] | None = None
    """Text, or path of the image, of each sample."""

    def values(self, codes: Int[np.ndarray, " M"]) -> Shaped[np.ndarray, " M"]:
        """Return class numbers as the data write them; -1 is None."""
        written: np.ndarray = object_array([*self.class_values, None])[codes]
        return written


def label_table(data: Data) -> LabelTable:
    """Return the labels of train and validation, in this order."""
    splits = [s for s in LABELED_SPLITS if s in data.rows]
    true_y = None
    if any(s in data.truth for s in splits):
        true_y = np.concatenate([data.truth.get(s, np.full(len(data.rows[s]), -1)) for s in splits])
    column, content = _content(data, splits)
    return LabelTable(
        ids=np.concatenate([data.rows[s].ids for s in splits]),
        split=np.concatenate([np.full(len(data.rows[s]), s, dtype=object) for s in splits]),
        y=np.concatenate([data.rows[s].y for s in splits]).astype(np.int64),
        true_y=true_y,
        class_names=data.classes,
        class_values=data.class_values,
        content_column=column,
        content=content,
    )


def _content(data: Data, splits: list[str]) -> tuple[str | None, np.ndarray | None]:
    """Return name and values of the column of texts or of image paths; None where images are not in files."""
    if data.kind == "text":
        texts = [text for s in splits for text in data.rows[s].samples.read(range(len(data.rows[s])))]
        return "text", object_array(texts)
    if data.kind == "image":
        places = [data.rows[s].samples.describe(k) for s in splits for k in range(len(data.rows[s]))]
        if places and Path(places[0]).is_file():
            return "image", object_array(places)
    return None, None


def label_frame(
    scores: LabelScores,
    table: LabelTable,
    selected: Bool[np.ndarray, " N"] | None = None,
    extra: dict[str, Shaped[np.ndarray, " N"]] | None = None,
) -> Any:
    """Return a frame with one row per label, worst first; equal scores keep the order of the table.

    Args:
        scores: Scores of the labels, in the order of the table.
        table: The labels.
        selected: Labels that the last selection of a training run kept; the column is left out without it.
        extra: Further columns by name.
    """
    import pandas as pd

    columns: dict[str, Any] = {
        "id": table.ids,
        "split": table.split,
        "given_label": table.values(table.y),
        "suggested_label": table.values(scores.suggested.numpy()),
        "suggested_confidence": scores.confidence.double().numpy(),
        "label_score": scores.label_score.double().numpy(),
        "p_wrong": scores.p_wrong.double().numpy(),
        "is_label_issue": scores.is_issue.numpy(),
    }
    if selected is not None:
        columns["selected"] = selected
    if table.true_y is not None:
        columns["true_label"] = table.values(table.true_y)
    columns |= extra or {}
    if table.content_column is not None:
        columns[table.content_column] = table.content
    frame = pd.DataFrame(columns).infer_objects()
    order = np.lexsort((np.arange(len(frame)), frame["label_score"].to_numpy()))
    return frame.iloc[order].reset_index(drop=True)


def write_labels(folder: Path, frame: Any) -> None:
    """Write labels.parquet and labels.csv."""
    write_table(folder / RunDir.LABELS, lambda path: frame.to_parquet(path, index=False))
    write_table(folder / RunDir.LABELS_CSV, lambda path: frame.to_csv(path, index=False))


def measure_labels(scores: LabelScores, table: LabelTable) -> dict[str, Any]:
    """Measure the list against true labels, where they are known; empty otherwise."""
    from cleantune.functional import metrics

    if table.true_y is None or not (table.true_y >= 0).any():
        return {}
    known = table.true_y >= 0
    truth, is_right = table.true_y[known], (table.true_y == table.y)[known]
    issue, suggested = scores.is_issue.numpy()[known], scores.suggested.numpy()[known]
    hits = int((issue & ~is_right).sum())
    has_errors = bool((~is_right).any())
    return {
        "auroc": metrics.auroc(scores.label_score.double().numpy()[known], is_right),
        "precision": hits / int(issue.sum()) if issue.any() else None,
        "recall": hits / int((~is_right).sum()) if has_errors else None,
        "suggestion_accuracy": float((suggested == truth)[~is_right].mean()) if has_errors else None,
        "true_rate": float((~is_right).mean()),
    }
