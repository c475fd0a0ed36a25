"""From what a user says about their data to its splits, classes and true labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from cleantune.config.data import DataConfig
from cleantune.data.columns import Columns, choose_columns, choose_sample, split_rows_by_column
from cleantune.data.dataset import Data, DataKind, Rows, Samples, compute_fingerprint
from cleantune.data.duplicates import count_duplicates
from cleantune.data.ids import read_ids, unify_ids
from cleantune.data.labels import Labels, read_labels, unknown_label, vocabulary
from cleantune.data.raw_table import RawTable
from cleantune.data.readers import read, read_single_table
from cleantune.data.samples import TextSamples
from cleantune.data.split_assembly import SplitPart, draw_splits
from cleantune.errors import UserError, did_you_mean


def load(spec: DataConfig, cache: str | None = None) -> Data:
    """The data, divided into splits, with its classes.

    Rows without a given label become the split `unlabeled`. The classes are those of the given labels of the training
    rows, and of true labels where known, before any draw. Draws are seeded by `split_seed` and stratified by given
    label: first test, then `limit`, then validation.

    Args:
        spec: Where the data are and what their columns mean.
        cache: Where copies of what lies at an address are kept, as `--cache`.

    Raises:
        UserError: In one sentence, for whatever is missing, malformed or cannot be learned from.
    """
    return assemble(spec, cache)[0]


def assemble(spec: DataConfig, cache: str | None = None) -> tuple[Data, dict[str, SplitPart], Columns]:
    """`load`, with the rows that each split came from and the columns chosen."""
    _check(spec)
    notes: list[str] = []
    parts = read(spec.data, notes, cache=cache)
    if "train" not in parts and "" not in parts:
        raise UserError(f"{next(iter(parts.values())).name}: there is no training split, only {', '.join(parts)}")
    first = parts.get("train") or parts[""]
    columns = choose_columns(first, spec, notes)
    pieces = _pieces(spec, parts, columns, notes, cache)
    classes, values = _label(spec, columns, pieces, notes)
    splits = draw_splits(spec, pieces, classes, notes)
    samples = _samples(columns, splits, notes)
    ids = {split: read_ids(piece.part, piece.rows, columns, spec.id, split, notes) for split, piece in splits.items()}
    unify_ids(ids, notes)
    rows = {split: Rows(ids[split], piece.labels, samples[split]) for split, piece in splits.items()}
    truth = {split: piece.truth for split, piece in splits.items() if piece.truth is not None}
    mark = compute_fingerprint(classes, rows, truth)
    return Data(columns.kind, classes, values, rows, truth, tuple(dict.fromkeys(notes)), mark), splits, columns


def load_unlabeled(
    data: Any,
    *,
    kind: DataKind | None = None,
    text: str | None = None,
    image: str | None = None,
    id: str | None = None,  # noqa: A002
) -> Rows:
    """All rows of some data, for prediction; labels are not needed and not read.

    Args:
        data: As `DataConfig.data`; also a list of texts, or of image paths or Pillow images, with `kind` said; an array
            of features; one image file. Any folder of images will do, its folders are no classes.
        kind: What the model reads; None takes what is there.
        text: Column of texts.
        image: Column of images.
        id: Column of ids.

    Raises:
        UserError: As `load`, and where the data is of another kind.
    """
    notes: list[str] = []
    if isinstance(data, list) and not data:
        raise UserError("the data is empty: it has no rows")
    if isinstance(data, list):
        data = {kind or "text": data}
    elif hasattr(data, "ndim") and not hasattr(data, "columns"):
        data = {kind or "features": data}
    part = read_single_table(data, "test", notes, labeled=False)
    if id:
        part.need(id, "--id")
    found, sample = choose_sample(part, text, image, notes, but=(id,))
    if kind is not None and found != kind:
        raise UserError(f'{part.name}: the column "{sample}" holds {found}, but the model reads {kind}')
    every = np.arange(len(part))
    columns = Columns(found, sample, "", id or ("id" if part.has("id") else None), None)
    ids = read_ids(part, every, columns, id, "data", notes)
    return Rows(ids, np.full(len(part), -1, np.int64), part.samples(found, sample))


def _check(spec: DataConfig) -> None:
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(spec, name)
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}, it must be at least 0 and below 1")
    if spec.limit is not None and spec.limit < 2:
        raise UserError(f"limit is {spec.limit}, it must be at least 2")


def _pieces(
    spec: DataConfig, parts: dict[str, RawTable], columns: Columns, notes: list[str], cache: str | None
) -> dict[str, SplitPart]:
    whole = parts.get("")
    if whole is None:
        pieces = {split: SplitPart(part, np.arange(len(part)), True) for split, part in parts.items()}
    elif columns.split is None:
        pieces = {"train": SplitPart(whole, np.arange(len(whole)), True)}
    else:
        pieces = {
            split: SplitPart(whole, rows, True)
            for split, rows in split_rows_by_column(whole, columns.split, notes).items()
        }
    for split, source in (("validation", spec.validation), ("test", spec.test)):
        if source is None:
            continue
        if split in pieces:
            notes.append(f"the {split} rows of {pieces[split].part.name} are left out for those of --{split}")
        part = read_single_table(source, split, notes, cache=cache)
        pieces[split] = SplitPart(part, np.arange(len(part)), False)
    if spec.test_label not in (None, columns.label, spec.true_label) and "test" not in pieces:
        raise UserError(
            f'--test-label "{spec.test_label}" is for test rows that are handed over; those that --test-fraction draws '
            "are judged by --true-label or --label"
        )
    return pieces


def _label(
    spec: DataConfig, columns: Columns, pieces: dict[str, SplitPart], notes: list[str]
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    train = pieces["train"]
    given = read_labels(train.part, columns.label, notes)
    used = given.used(train.rows)
    if len(used) < 2:
        only = f'one class only ("{next(iter(used))}")' if used else "no class at all"
        raise UserError(
            f'{train.part.name}: the label column "{columns.label}" holds {only}; learning needs at least two'
        )
    true = read_labels(train.part, spec.true_label, notes) if spec.true_label else None
    extra = {} if true is None else {n: v for n, v in true.used(train.rows).items() if n not in used}
    if extra:
        notes.append(f"classes that no given label names, only true ones: {', '.join(extra)}; they count as wrong")
    classes, values = vocabulary(used | extra, given.declared)
    for split in pieces:
        pieces[split] = _labeled(spec, columns, pieces[split], split, classes, notes)
    return classes, values


def _labeled(
    spec: DataConfig, columns: Columns, piece: SplitPart, split: str, classes: Sequence[str], notes: list[str]
) -> SplitPart:
    part = piece.part
    column = columns.label
    if split == "test":
        column = _test_column(spec, columns, piece, notes)
    part.need(column, "--test-label" if split == "test" else "--label")
    y = _encode(read_labels(part, column, notes), piece, classes)
    truth = None
    if part.has(spec.true_label):
        truth = _encode(read_labels(part, str(spec.true_label), notes), piece, classes)
    return replace(piece, y=y, truth=truth)


def _encode(labels: Labels, piece: SplitPart, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
    y: np.ndarray = labels.encode(classes)[piece.rows]
    unknown = np.flatnonzero(y == -2)
    if len(unknown):
        raise unknown_label(labels, int(piece.rows[unknown[0]]), piece.part, classes)
    return y


def _test_column(spec: DataConfig, columns: Columns, piece: SplitPart, notes: list[str]) -> str:
    if spec.test_label is not None:
        return spec.test_label
    if piece.part.has(spec.true_label):
        notes.append(f'the test rows are judged by their true labels, the column "{spec.true_label}"')
        return str(spec.true_label)
    if not piece.part.has(columns.label):
        hint = did_you_mean(columns.label, piece.part.table.column_names)
        raise UserError(
            f'the test data {piece.part.name} has no column "{columns.label}"{hint}; name its labels with --test-label'
        )
    return columns.label


def _samples(columns: Columns, splits: dict[str, SplitPart], notes: list[str]) -> dict[str, Samples]:
    whole: dict[int, Samples] = {}
    taken: dict[str, Samples] = {}
    for split, piece in splits.items():
        if id(piece.part) not in whole:
            piece.part.need(columns.sample, f"--{columns.kind}")
            whole[id(piece.part)] = piece.part.samples(columns.kind, columns.sample)
        taken[split] = whole[id(piece.part)].take(piece.rows)
    if columns.kind == "features":
        _same_width(splits, taken)
    for split, own in taken.items():
        if isinstance(own, TextSamples) and (missing := own.count_missing()):
            notes.append(f"{missing} {split} rows have no text; they are read as empty ones")
    if "test" in taken and (count := count_duplicates(taken["train"], taken["test"])):
        notes.append(f"{count} of {len(taken['test'])} test samples are exact copies of training samples")
    return taken


def _same_width(splits: dict[str, SplitPart], samples: dict[str, Samples]) -> None:
    widths = {split: np.asarray(taken.read([0])).shape[1] for split, taken in samples.items()}
    for split, width in widths.items():
        if width != widths["train"]:
            raise UserError(
                f"{splits[split].part.name} has {width} features a row, the training rows have {widths['train']}"
            )
