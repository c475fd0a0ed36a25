"""Labeled data for the evaluation of finished models, with the domain of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from cleantune.config.data import DataConfig
from cleantune.data.columns import choose_columns
from cleantune.data.dataset import DataKind, Rows
from cleantune.data.ids import read_ids
from cleantune.data.labels import read_labels
from cleantune.data.readers import read_single_table
from cleantune.errors import UserError
from cleantune.utils.arrays import object_array


@dataclass(frozen=True, eq=False)
class LabeledEvalSet:
    """Rows with labels that need not be classes of a model."""

    name: str
    """Name of the data for tables and messages."""
    rows: Rows
    """Rows without labels."""
    codes: Int[np.ndarray, " N"]
    """Position of each row's label in `names`."""
    names: tuple[str, ...]
    """Distinct labels as class names."""
    domains: Shaped[np.ndarray, " N"]
    """Domain of each row: objects of type str."""
    notes: tuple[str, ...]
    """Messages for the user."""

    def take(self, indices: Int[np.ndarray, " M"]) -> LabeledEvalSet:
        """Return a subset in this order."""
        rows = self.rows.take(indices)
        return LabeledEvalSet(self.name, rows, self.codes[indices], self.names, self.domains[indices], self.notes)


def load_labeled_eval_set(
    data: Any, kind: DataKind, *, text: str | None = None, image: str | None = None, label: str | None = None,
    domain: str | None = None,
) -> LabeledEvalSet:  # fmt: skip
    """Load all rows with a label: those of the test split if the data have splits.

    Args:
        data: Data in any form that `DataConfig.data` takes.
        kind: Modality that the model takes.
        text: Column of texts; guessed if None, like all columns.
        image: Column of images.
        label: Column of labels.
        domain: Column of domains; None: one domain with the name of the data.

    Raises:
        UserError: A column is missing, the data have another modality, or no row has a label.
    """
    notes: list[str] = []
    raw = read_single_table(data, "test", notes)
    if domain is not None:
        raw.need(domain, "--domain-column")
    columns = choose_columns(raw, DataConfig(data, text=text, image=image, label=label, split_column=""), notes)
    if columns.kind != kind:
        raise UserError(f'{raw.name}: the column "{columns.sample}" is {columns.kind}, but the model reads {kind}')
    labels = read_labels(raw, columns.label, notes)
    labeled = np.flatnonzero(labels.codes >= 0)
    if not len(labeled):
        raise UserError(f'{raw.name}: no row has a label in the column "{columns.label}"')
    if len(labeled) < len(raw):
        notes.append(f"{raw.name}: {len(raw) - len(labeled)} rows without a label are left out")
    ids = read_ids(raw, labeled, columns, None, "data", notes)
    samples = raw.samples(kind, columns.sample).take(labeled)
    rows = Rows(ids, np.full(len(labeled), -1, np.int64), samples)
    name = _base_name(raw.name)
    values = [name] * len(raw) if domain is None else raw.table.column(domain).to_pylist()
    domains = object_array("none" if value is None else str(value) for value in values)
    return LabeledEvalSet(name, rows, labels.codes[labeled], labels.names, domains[labeled], tuple(notes))


def _base_name(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0] or name
