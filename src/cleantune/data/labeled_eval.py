"""Labeled rows for measuring a finished model on: their labels as written, and which domain each row is of."""

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
    """Rows with labels that need not be classes of any model."""

    name: str
    """Of the data, for tables and messages."""
    rows: Rows
    """Without labels."""
    codes: Int[np.ndarray, " N"]
    """Position of each row's label in `names`."""
    names: tuple[str, ...]
    """The distinct labels as class names."""
    domains: Shaped[np.ndarray, " N"]
    """The domain of each row, str as objects."""
    notes: tuple[str, ...]

    def take(self, indices: Int[np.ndarray, " M"]) -> LabeledEvalSet:
        """These rows alone, in this order."""
        rows = self.rows.take(indices)
        return LabeledEvalSet(self.name, rows, self.codes[indices], self.names, self.domains[indices], self.notes)


def load_labeled_eval_set(
    data: Any, kind: DataKind, *, text: str | None = None, image: str | None = None, label: str | None = None,
    domain: str | None = None,
) -> LabeledEvalSet:  # fmt: skip
    """All rows of some data that have a label: its part `test` where it has parts, else every row.

    Args:
        data: As `DataConfig.data`.
        kind: What the model reads.
        text: Column of texts; guessed when left out, as all columns are.
        image: Column of images.
        label: Column of labels.
        domain: Column of domains; None: all rows are of one, called by the data's name.

    Raises:
        UserError: A column is missing, the data are of another kind, or no row has a label.
    """
    notes: list[str] = []
    part = read_single_table(data, "test", notes)
    if domain is not None:
        part.need(domain, "--domain-column")
    columns = choose_columns(part, DataConfig(data, text=text, image=image, label=label, split_column=""), notes)
    if columns.kind != kind:
        raise UserError(f'{part.name}: the column "{columns.sample}" holds {columns.kind}, but the model reads {kind}')
    labels = read_labels(part, columns.label, notes)
    labeled = np.flatnonzero(labels.codes >= 0)
    if not len(labeled):
        raise UserError(f'{part.name}: no row has a label in the column "{columns.label}"')
    if len(labeled) < len(part):
        notes.append(f"{part.name}: {len(part) - len(labeled)} rows without a label are left out")
    ids = read_ids(part, labeled, columns, None, "data", notes)
    samples = part.samples(kind, columns.sample).take(labeled)
    rows = Rows(ids, np.full(len(labeled), -1, np.int64), samples)
    whole = part.table.column(domain).to_pylist() if domain is not None else [_short(part.name)] * len(part)
    domains = object_array("none" if value is None else str(value) for value in whole)
    return LabeledEvalSet(_short(part.name), rows, labels.codes[labeled], labels.names, domains[labeled], tuple(notes))


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0] or name
