"""Table of labels: its order and its columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleantune.data import Data, Rows
from cleantune.label_quality.scores import LabelScores
from cleantune.pipeline.label_table import label_frame, label_table, measure_labels

COLUMNS = [
    "id",
    "split",
    "given_label",
    "suggested_label",
    "suggested_confidence",
    "label_score",
    "p_wrong",
    "is_label_issue",
]


class NoSamples:
    """Samples that are never read."""

    kind = "features"
    fingerprint = ""


class Texts:
    """Samples whose text is their row number."""

    kind = "text"
    fingerprint = ""

    def read(self, indices: range) -> list[str]:
        return [f"text {i}" for i in indices]


def data(
    y: dict[str, list[int]],
    truth: dict[str, list[int]] | None = None,
    values: tuple = ("cat", "dog"),
    samples: object = None,
) -> Data:
    rows = {
        split: Rows(
            np.array([f"{split}{i}" for i in range(len(given))], dtype=object),
            np.array(given),
            samples or NoSamples(),  # type: ignore[arg-type]
        )
        for split, given in y.items()
    }
    true = {split: np.array(t) for split, t in (truth or {}).items()}
    return Data((samples or NoSamples()).kind, tuple(map(str, values)), values, rows, true, (), "")  # type: ignore[attr-defined]


def scores(score: list[float], suggested: list[int], issue: list[bool]) -> LabelScores:
    s = torch.tensor(score)
    return LabelScores(
        s, 1 - s, torch.tensor(issue), torch.tensor(suggested), torch.ones_like(s), 0.5, 0.3, (0.2, 0.4),
        torch.zeros(2, 3), torch.eye(2), torch.zeros(2, 2, 2), 1.0,
    )  # fmt: skip


def test_labels_are_sorted_worst_first_with_all_columns() -> None:
    table = label_table(data({"train": [0, 1, 0], "validation": [1], "test": [0]}))
    frame = label_frame(scores([0.9, 0.1, 0.5, 0.3], [0, 0, 1, 1], [False, True, True, False]), table)
    assert list(frame.columns) == COLUMNS
    assert frame["id"].tolist() == ["train1", "validation0", "train2", "train0"]
    assert frame["split"].tolist() == ["train", "validation", "train", "train"]
    assert frame["label_score"].is_monotonic_increasing
    assert frame["p_wrong"].is_monotonic_decreasing
    assert frame["given_label"].tolist() == ["dog", "dog", "cat", "cat"]
    assert frame["suggested_label"].tolist() == ["cat", "dog", "dog", "cat"]
    assert frame["is_label_issue"].tolist() == [True, False, True, False]
    assert frame.index.tolist() == [0, 1, 2, 3]


def test_equal_scores_keep_the_order_of_the_rows() -> None:
    frame = label_frame(scores([0.5] * 20, [0] * 20, [False] * 20), label_table(data({"train": [0] * 20})))
    assert frame["id"].tolist() == [f"train{i}" for i in range(20)]


def test_selected_rows_texts_and_true_labels_have_columns() -> None:
    table = label_table(data({"train": [0, 1], "validation": [1]}, {"train": [1, -1]}, samples=Texts()))
    selected = np.array([True, False, False])
    frame = label_frame(scores([0.1, 0.2, 0.3], [0, 0, 0], [False] * 3), table, selected)
    assert list(frame.columns) == [*COLUMNS, "selected", "true_label", "text"]
    assert frame["selected"].tolist() == [True, False, False]
    assert frame["true_label"][0] == "dog"
    assert frame["true_label"].isna().tolist() == [False, True, True]
    assert frame["text"].tolist() == ["text 0", "text 1", "text 0"]


def test_labels_are_written_as_the_data_write_them() -> None:
    table = label_table(data({"train": [0, 1]}, values=(3, 7)))
    frame = label_frame(scores([0.1, 0.2], [1, 0], [True, True]), table)
    assert frame["given_label"].tolist() == [3, 7]
    assert frame["given_label"].dtype == np.int64


def test_the_list_is_measured_where_true_labels_are_known() -> None:
    table = label_table(data({"train": [0, 0, 1, 1]}, {"train": [1, 0, 1, -1]}))
    measured = measure_labels(scores([0.1, 0.2, 0.9, 0.0], [1, 1, 1, 0], [True, True, False, True]), table)
    assert measured == {
        "auroc": 1.0,
        "precision": 0.5,
        "recall": 1.0,
        "suggestion_accuracy": 1.0,
        "true_rate": pytest.approx(1 / 3),
    }
    assert measure_labels(scores([0.1], [0], [True]), label_table(data({"train": [0]}))) == {}
