"""Roles of columns: as the user names them, else guessed from names and types; each guess is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from cleantune.config.data import DataConfig
from cleantune.data.dataset import DataKind
from cleantune.data.raw_table import RawTable, has_image_paths, is_image, is_text, is_vector
from cleantune.data.splits import canonical_split
from cleantune.errors import UserError

# fmt: off
IMAGE_NAMES = ("image", "img", "picture", "photo", "image_path", "file_name", "filename", "image_file", "path", "file")
TEXT_NAMES = (
    "text", "sentence", "content", "utterance", "message", "query", "question", "review", "comment", "document",
)
FEATURE_NAMES = ("features", "embedding", "embeddings", "feature", "vector")
LABEL_NAMES = ("label", "labels", "given_label", "class", "category", "intent", "target", "y", "fine_label")
# fmt: on


@dataclass(frozen=True)
class Columns:
    """Roles of the columns of a table."""

    kind: DataKind
    sample: str
    label: str
    id: str | None
    split: str | None


def choose_columns(raw: RawTable, config: DataConfig, notes: list[str]) -> Columns:
    """Take the columns that the user named and guess the rest.

    Raises:
        UserError: A named column does not exist, or no column fits; the message names the option.
    """
    for column, flag in ((config.label, "--label"), (config.true_label, "--true-label"), (config.id, "--id")):
        if column:
            raw.need(column, flag)
    label = config.label or _find_column(raw, LABEL_NAMES)
    kind, sample = choose_sample(
        raw, config.text, config.image, notes, exclude=(label, config.true_label, config.id)
    )
    if label is None:
        raise UserError(f"{raw.name}: no column looks like labels among {_column_names(raw)}; name it with --label")
    if label == sample:
        raise UserError(f'{raw.name}: the column "{label}" cannot be both sample and label')
    if config.label is None and label != "label":
        notes.append(f'{raw.name}: took the column "{label}" for the labels (--label)')
    return Columns(kind, sample, label, choose_id(raw, config.id), _choose_split(raw, config, notes))


def choose_sample(
    raw: RawTable, text: str | None, image: str | None, notes: list[str], *, exclude: Sequence[str | None] = ()
) -> tuple[DataKind, str]:
    """Choose modality and column of the samples: as named, else features, images or texts in this order.

    Raises:
        UserError: A named column does not exist, both are named, or no column fits.
    """
    if text and image:
        raise UserError("--text and --image exclude each other; name one")
    if text or image:
        column = text or image or ""
        raw.need(column, "--text" if text else "--image")
        return ("text" if text else "image"), column
    guess = _guess_sample(raw, [name for name in raw.table.column_names if name not in exclude])
    if guess is None:
        raise UserError(
            f"{raw.name}: no column looks like images, texts or features among "
            f"{_column_names(raw)}; name it with --image or --text"
        )
    kind, column = guess
    if column != kind:
        notes.append(f'{raw.name}: took the column "{column}" for the {kind}{"" if kind == "features" else "s"}')
    return guess


def _guess_sample(raw: RawTable, names: list[str]) -> tuple[DataKind, str] | None:
    """Return the most plausible modality and column, or None."""
    types = {name: raw.table.schema.field(name).type for name in names}
    candidates: list[tuple[DataKind, str]] = []
    candidates += [("features", n) for n in FEATURE_NAMES if n in types and is_vector(types[n])]
    candidates += [("image", n) for n in (*IMAGE_NAMES, *names) if n in types and is_image(types[n])]
    strings = [n for n in names if is_text(types[n])]
    candidates += [("image", n) for n in IMAGE_NAMES if n in strings and has_image_paths(raw.table.column(n))]
    candidates += [("text", n) for n in TEXT_NAMES if n in strings]
    candidates += [("features", n) for n in names if is_vector(types[n])]
    others = [n for n in strings if n not in (*LABEL_NAMES, "id", "split")]
    if len(others) == 1:  # with several, any could be the one
        candidates.append(("image" if has_image_paths(raw.table.column(others[0])) else "text", others[0]))
    return candidates[0] if candidates else None


def choose_id(raw: RawTable, column: str | None) -> str | None:
    """Choose the column of ids: as named (empty for none), else `id` if it exists."""
    if column:
        return column
    return "id" if column is None and raw.has("id") else None


def _choose_split(raw: RawTable, config: DataConfig, notes: list[str]) -> str | None:
    if config.split_column:
        raw.need(config.split_column, "--split-column")
        return config.split_column
    guess = "split"
    if config.split_column == "" or not raw.has(guess) or not is_text(raw.table.schema.field(guess).type):
        return None
    splits = {canonical_split(value) for value in pc.unique(raw.table.column(guess)).to_pylist() if value}
    if "train" not in splits or len(splits - {None}) < 2:
        return None
    notes.append(f'{raw.name}: took the column "{guess}" for the splits (--split-column; empty for none)')
    return guess


def split_rows_by_column(raw: RawTable, column: str, notes: list[str]) -> dict[str, np.ndarray]:
    """Return the row numbers of each split that a column names; other rows are omitted and counted in the notes.

    Raises:
        UserError: No row is in the training split.
    """
    values = ["" if value is None else str(value) for value in raw.table.column(column).to_pylist()]
    distinct, code, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    split_of = [canonical_split(value) for value in distinct]
    others = [f'"{v}" ({n})' for v, s, n in zip(distinct, split_of, counts, strict=True) if s is None]
    if "train" not in split_of:
        raise UserError(
            f'{raw.name}: no row of the column "{column}" is named train; its values are '
            f"{', '.join(map(str, distinct[:8]))}"
        )
    if others:
        notes.append(f'{raw.name}: omitted the rows whose "{column}" names no split: {", ".join(others[:8])}')
    names = np.array([split or "" for split in split_of])[code]
    return {split: np.flatnonzero(names == split) for split in ("train", "validation", "test") if split in split_of}


def _find_column(raw: RawTable, names: Sequence[str]) -> str | None:
    """Return the first column with one of the names, ignoring case."""
    lower = {name.lower(): name for name in reversed(raw.table.column_names)}
    return next((lower[name] for name in names if name in lower), None)


def _column_names(raw: RawTable) -> str:
    return ", ".join(f'"{name}"' for name in raw.table.column_names[:12])
