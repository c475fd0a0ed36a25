"""Which column is what: as the user says, else guessed from names and types, and the guess noted."""

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

IMAGE_NAMES = ("image", "img", "picture", "photo", "image_path", "file_name", "filename", "image_file", "path", "file")
TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "utterance",
    "message",
    "query",
    "question",
    "review",
    "comment",
    "document",
)
FEATURE_NAMES = ("features", "embedding", "embeddings", "feature", "vector")
LABEL_NAMES = ("label", "labels", "given_label", "class", "category", "intent", "target", "y", "fine_label")


@dataclass(frozen=True)
class Columns:
    """What the columns of a part are."""

    kind: DataKind
    sample: str
    label: str
    id: str | None
    split: str | None


def choose_columns(part: RawTable, spec: DataConfig, notes: list[str]) -> Columns:
    """The columns that the user named, and good guesses for the rest.

    Raises:
        UserError: Naming the column that is not there and the nearest, or the flag that would name it.
    """
    for column, flag in ((spec.label, "--label"), (spec.true_label, "--true-label"), (spec.id, "--id")):
        if column:
            part.need(column, flag)
    label = spec.label or _guess(part, LABEL_NAMES)
    kind, sample = choose_sample(part, spec.text, spec.image, notes, but=(label, spec.true_label, spec.id))
    if label is None:
        raise UserError(f"{part.name}: no column looks like labels among {_listed(part)}; name it with --label")
    if label == sample:
        raise UserError(f'{part.name}: the column "{label}" cannot be both sample and label')
    if spec.label is None and label != "label":
        notes.append(f'{part.name}: took the column "{label}" for the labels (--label)')
    return Columns(kind, sample, label, choose_id(part, spec.id), _split_column(part, spec, notes))


def choose_sample(
    part: RawTable, text: str | None, image: str | None, notes: list[str], *, but: Sequence[str | None] = ()
) -> tuple[DataKind, str]:
    """Kind and column of the samples: as named, else features, images and texts in this order.

    Raises:
        UserError: Where a named column is not there, both are named, or nothing fits.
    """
    if text and image:
        raise UserError("--text and --image exclude each other; name one")
    if text or image:
        column = text or image or ""
        part.need(column, "--text" if text else "--image")
        return ("text" if text else "image"), column
    free = [name for name in part.table.column_names if name not in but]
    guess = _guess_sample(part, free)
    if guess is None:
        raise UserError(
            f"{part.name}: no column looks like images, texts or features among "
            f"{_listed(part)}; name it with --image or --text"
        )
    if guess[1] != guess[0]:
        notes.append(
            f'{part.name}: took the column "{guess[1]}" for the {guess[0]}{"" if guess[0] == "features" else "s"}'
        )
    return guess


def _guess_sample(part: RawTable, free: list[str]) -> tuple[DataKind, str] | None:
    kinds = {name: part.table.schema.field(name).type for name in free}
    candidates: list[tuple[DataKind, str]] = []
    candidates += [("features", n) for n in FEATURE_NAMES if n in kinds and is_vector(kinds[n])]
    candidates += [("image", n) for n in (*IMAGE_NAMES, *free) if n in kinds and is_image(kinds[n])]
    strings = [n for n in free if is_text(kinds[n])]
    candidates += [("image", n) for n in IMAGE_NAMES if n in strings and has_image_paths(part.table.column(n))]
    candidates += [("text", n) for n in TEXT_NAMES if n in strings]
    candidates += [("features", n) for n in free if is_vector(kinds[n])]
    rest = [n for n in strings if n not in (*LABEL_NAMES, "id", "split")]
    if len(rest) == 1:  # of several, any could be meant
        candidates.append(("image" if has_image_paths(part.table.column(rest[0])) else "text", rest[0]))
    return candidates[0] if candidates else None


def choose_id(part: RawTable, column: str | None) -> str | None:
    """The column of ids: as named (empty: none), else `id` where there is one."""
    if column:
        return column
    return "id" if column is None and part.has("id") else None


def _split_column(part: RawTable, spec: DataConfig, notes: list[str]) -> str | None:
    if spec.split_column:
        part.need(spec.split_column, "--split-column")
        return spec.split_column
    guess = "split"
    if spec.split_column == "" or not part.has(guess) or not is_text(part.table.schema.field(guess).type):
        return None
    names = {canonical_split(value) for value in pc.unique(part.table.column(guess)).to_pylist() if value}
    if "train" not in names or len(names - {None}) < 2:
        return None
    notes.append(f'{part.name}: took the column "{guess}" for the splits (--split-column; empty for none)')
    return guess


def split_rows_by_column(part: RawTable, column: str, notes: list[str]) -> dict[str, np.ndarray]:
    """Row numbers of each split that a column names; rows of other names are left out and counted in the notes.

    Raises:
        UserError: Where no row is named train.
    """
    values = ["" if value is None else str(value) for value in part.table.column(column).to_pylist()]
    distinct, code, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    split_of = [canonical_split(value) for value in distinct]
    others = [f'"{v}" ({n})' for v, s, n in zip(distinct, split_of, counts, strict=True) if s is None]
    if "train" not in split_of:
        raise UserError(
            f'{part.name}: no row of the column "{column}" is named train; it holds {", ".join(map(str, distinct[:8]))}'
        )
    if others:
        notes.append(f'{part.name}: left out the rows whose "{column}" names no split: {", ".join(others[:8])}')
    names = np.array([split or "" for split in split_of])[code]
    return {split: np.flatnonzero(names == split) for split in ("train", "validation", "test") if split in split_of}


def _guess(part: RawTable, names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(part.table.column_names)}
    return next((lower[name] for name in names if name in lower), None)


def _listed(part: RawTable) -> str:
    return ", ".join(f'"{name}"' for name in part.table.column_names[:12])
