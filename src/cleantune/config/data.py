"""Configuration of the data: location, roles of the columns, and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Location of the data, roles of their columns, and splits."""

    data: Any
    """Image folder, table (.csv .tsv .jsonl .parquet) or embeddings (.npz), by path or address (`s3://…`), Hugging Face
    folder or `hf:NAME`; in Python also a `datasets.Dataset`, a pandas frame, a mapping of arrays or
    `(features, labels)`."""
    text: str | None = None
    """Column of texts. Default: guessed."""
    image: str | None = None
    """Column of images: paths relative to the table, bytes, or structs of both. Default: guessed."""
    label: str | None = None
    """Column of given labels. Default: guessed."""
    id: str | None = None
    """Column of ids. Default: the column `id`, else the path of the image, else the row number."""
    true_label: str | None = None
    """Column of true labels, which are used for evaluation only."""
    split_column: str | None = None
    """Column with the split of each row; empty for none. Default: the column `split` if it names splits."""
    test: Any = None
    """Test data, in any form that `data` takes; never corrupted and never used for selection."""
    test_label: str | None = None
    """Label column of the test rows. Default: `true_label` if the test rows have it, else `label`."""
    validation: Any = None
    """Validation data, in any form that `data` takes. Default: drawn from the training rows."""
    validation_fraction: float = 0.1
    """Fraction of the training rows drawn for validation, stratified; unused if the data have validation rows."""
    test_fraction: float = 0.0
    """Fraction of the training rows drawn for test, stratified; unused if the data have test rows."""
    limit: int | None = None
    """Number of training rows to draw, stratified, before validation rows are drawn from them. Default: all."""
    split_seed: int = 0
    """Seed of all draws of rows."""
