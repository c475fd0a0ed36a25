"""What a user says about their data: one frozen dataclass, read by config, command line and docs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Where the data is, what its columns mean, and how it is divided."""

    data: Any
    """Image folder, table (.csv .tsv .jsonl .parquet), embeddings (.npz), each by path or address (`s3://…`), Hugging
    Face folder or `hf:NAME`; in Python also a `datasets.Dataset`, a pandas frame, a mapping of arrays or
    `(features, labels)`."""
    text: str | None = None
    """Column of texts; guessed when left out."""
    image: str | None = None
    """Column of images: paths relative to the table, bytes, or structs of both; guessed when left out."""
    label: str | None = None
    """Column of given labels; guessed when left out."""
    id: str | None = None
    """Column of ids; left out: a column `id`, else the image's path, else the row's number."""
    true_label: str | None = None
    """Column of true labels; they serve measuring alone."""
    split_column: str | None = None
    """Column that names each row's split; left out: a column `split` that names one, empty: none."""
    test: Any = None
    """Test data, in any form that `data` takes; its labels are never corrupted or chosen on."""
    test_label: str | None = None
    """Label column of the test rows; left out: `true_label` where the test rows have it, else `label`."""
    validation: Any = None
    """Validation data, in any form that `data` takes; left out: drawn from the training rows."""
    validation_fraction: float = 0.1
    """Share of the training rows drawn as validation, stratified; read only where there is no other validation."""
    test_fraction: float = 0.0
    """Share of the training rows drawn as test, stratified; read only where there is no other test."""
    limit: int | None = None
    """Training rows to draw, stratified, before validation is drawn from them; None takes all."""
    split_seed: int = 0
    """Seed of every draw of rows."""
