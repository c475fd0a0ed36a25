"""Loading of data: from the configuration to splits, classes and true labels."""

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
from cleantune.data.ids import make_ids_unique, read_ids
from cleantune.data.labels import Labels, read_labels, sort_classes, unknown_label_error
from cleantune.data.raw_table import RawTable
from cleantune.data.readers import read_single_table, read_tables
from cleantune.data.samples import TextSamples
from cleantune.data.split_assembly import SplitPart, draw_splits
from cleantune.errors import UserError, did_you_mean


def load(config: DataConfig, cache: str | None = None) -> Data:
    """Load data and divide them into splits.

    Rows without a given label become the split `unlabeled`. Classes are those of the given labels of the training rows,
    and of their true labels if known, before any draw. Draws are seeded by `split_seed` and stratified by given label:
    first the test split, then `limit`, then the validation split.

    Args:
        config: Location of the data, roles of the columns, and splits.
        cache: Folder for copies of remote data, as `--cache`.

    Raises:
        UserError: Something is missing, malformed or unsuitable for learning.
    """
    return assemble(config, cache)[0]


def assemble(config: DataConfig, cache: str | None = None) -> tuple[Data, dict[str, SplitPart], Columns]:
    """Load data as `load` does, and also return the table rows of each split and the roles of the columns."""
    _check_fractions(config)
    notes: list[str] = []
    tables = read_tables(config.data, notes, cache=cache)
    if "train" not in tables and "" not in tables:
        raise UserError(f"{next(iter(tables.values())).name}: there is no training split, only {', '.join(tables)}")
    columns = choose_columns(tables.get("train") or tables[""], config, notes)
    parts = _divide(config, tables, columns, notes, cache)
    classes, values, parts = _read_labels(config, columns, parts, notes)
    splits = draw_splits(config, parts, classes, notes)
    samples = _read_samples(columns, splits, notes)
    ids = {split: read_ids(part.raw, part.rows, columns, config.id, split, notes) for split, part in splits.items()}
    make_ids_unique(ids, notes)
    rows = {split: Rows(ids[split], part.labels, samples[split]) for split, part in splits.items()}
    truth = {split: part.truth for split, part in splits.items() if part.truth is not None}
    fingerprint = compute_fingerprint(classes, rows, truth)
    data = Data(columns.kind, classes, values, rows, truth, tuple(dict.fromkeys(notes)), fingerprint)
    return data, splits, columns


def load_unlabeled(
    data: Any,
    *,
    kind: DataKind | None = None,
    text: str | None = None,
    image: str | None = None,
    id: str | None = None,  # noqa: A002
) -> Rows:
    """Load all rows of some data for prediction; labels are not read.

    Args:
        data: Data in any form that `DataConfig.data` takes; also an array of features, an image file, a folder of
            images without class folders, or, together with `kind`, a list of texts, image paths or Pillow images.
        kind: Modality that the model takes; None for any.
        text: Column of texts.
        image: Column of images.
        id: Column of ids.

    Raises:
        UserError: As from `load`, or the data have another modality.
    """
    notes: list[str] = []
    if isinstance(data, list) and not data:
        raise UserError("the data is empty: it has no rows")
    if isinstance(data, list):
        data = {kind or "text": data}
    elif hasattr(data, "ndim") and not hasattr(data, "columns"):
        data = {kind or "features": data}
    raw = read_single_table(data, "test", notes, labeled=False)
    if id:
        raw.need(id, "--id")
    data_kind, sample = choose_sample(raw, text, image, notes, exclude=(id,))
    if kind is not None and data_kind != kind:
        raise UserError(f'{raw.name}: the column "{sample}" is {data_kind}, but the model reads {kind}')
    columns = Columns(data_kind, sample, "", id or ("id" if raw.has("id") else None), None)
    ids = read_ids(raw, np.arange(len(raw)), columns, id, "data", notes)
    return Rows(ids, np.full(len(raw), -1, np.int64), raw.samples(data_kind, sample))


def _check_fractions(config: DataConfig) -> None:
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}, it must be at least 0 and below 1")
    if config.limit is not None and config.limit < 2:
        raise UserError(f"limit is {config.limit}, it must be at least 2")


def _divide(
    config: DataConfig, tables: dict[str, RawTable], columns: Columns, notes: list[str], cache: str | None
) -> dict[str, SplitPart]:
    """Assign all rows to the splits that the data define."""
    undivided = tables.get("")
    if undivided is None:
        parts = {split: _all_rows(raw) for split, raw in tables.items()}
    elif columns.split is None:
        parts = {"train": _all_rows(undivided)}
    else:
        rows_by_split = split_rows_by_column(undivided, columns.split, notes)
        parts = {split: SplitPart(undivided, rows) for split, rows in rows_by_split.items()}
    for split, source in (("validation", config.validation), ("test", config.test)):
        if source is None:
            continue
        if split in parts:
            notes.append(f"the {split} rows of {parts[split].raw.name} are replaced by those of --{split}")
        parts[split] = _all_rows(read_single_table(source, split, notes, cache=cache))
    if config.test_label not in (None, columns.label, config.true_label) and "test" not in parts:
        raise UserError(
            f'--test-label "{config.test_label}" applies to test data of their own; rows that --test-fraction draws '
            "have the labels of --true-label or --label"
        )
    return parts


def _all_rows(raw: RawTable) -> SplitPart:
    return SplitPart(raw, np.arange(len(raw)))


def _read_labels(
    config: DataConfig, columns: Columns, parts: dict[str, SplitPart], notes: list[str]
) -> tuple[tuple[str, ...], tuple[Any, ...], dict[str, SplitPart]]:
    """Return class names, class values, and the parts with their given and true labels."""
    train = parts["train"]
    given = read_labels(train.raw, columns.label, notes)
    used = given.used(train.rows)
    if len(used) < 2:
        found = f'one class only ("{next(iter(used))}")' if used else "no class at all"
        raise UserError(
            f'{train.raw.name}: the label column "{columns.label}" has {found}; learning needs at least two'
        )
    true = read_labels(train.raw, config.true_label, notes) if config.true_label else None
    extra = {} if true is None else {n: v for n, v in true.used(train.rows).items() if n not in used}
    if extra:
        notes.append(f"classes that no given label names, only true ones: {', '.join(extra)}; they count as wrong")
    classes, values = sort_classes(used | extra, given.is_class_label)
    labeled = {split: _with_labels(config, columns, part, split, classes, notes) for split, part in parts.items()}
    return classes, values, labeled


def _with_labels(
    config: DataConfig, columns: Columns, part: SplitPart, split: str, classes: Sequence[str], notes: list[str]
) -> SplitPart:
    column = _test_label_column(config, columns, part, notes) if split == "test" else columns.label
    part.raw.need(column, "--test-label" if split == "test" else "--label")
    y = _encode(read_labels(part.raw, column, notes), part, classes)
    truth = None
    if part.raw.has(config.true_label):
        truth = _encode(read_labels(part.raw, str(config.true_label), notes), part, classes)
    return replace(part, y=y, truth=truth)


def _encode(labels: Labels, part: SplitPart, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
    y: np.ndarray = labels.encode(classes)[part.rows]
    unknown = np.flatnonzero(y == -2)
    if len(unknown):
        raise unknown_label_error(labels, int(part.rows[unknown[0]]), part.raw, classes)
    return y


def _test_label_column(config: DataConfig, columns: Columns, part: SplitPart, notes: list[str]) -> str:
    if config.test_label is not None:
        return config.test_label
    if part.raw.has(config.true_label):
        notes.append(f'the test rows have their true labels, the column "{config.true_label}"')
        return str(config.true_label)
    if not part.raw.has(columns.label):
        hint = did_you_mean(columns.label, part.raw.table.column_names)
        raise UserError(
            f'the test data {part.raw.name} has no column "{columns.label}"{hint}; name its labels with --test-label'
        )
    return columns.label


def _read_samples(columns: Columns, splits: dict[str, SplitPart], notes: list[str]) -> dict[str, Samples]:
    by_table: dict[int, Samples] = {}
    samples: dict[str, Samples] = {}
    for split, part in splits.items():
        if id(part.raw) not in by_table:
            part.raw.need(columns.sample, f"--{columns.kind}")
            by_table[id(part.raw)] = part.raw.samples(columns.kind, columns.sample)
        samples[split] = by_table[id(part.raw)].take(part.rows)
    if columns.kind == "features":
        _check_widths(splits, samples)
    for split, split_samples in samples.items():
        if isinstance(split_samples, TextSamples) and (num_missing := split_samples.count_missing()):
            notes.append(f"{num_missing} {split} rows have no text; they are read as empty ones")
    if "test" in samples and (count := count_duplicates(samples["train"], samples["test"])):
        notes.append(f"{count} of {len(samples['test'])} test samples are exact copies of training samples")
    return samples


def _check_widths(splits: dict[str, SplitPart], samples: dict[str, Samples]) -> None:
    widths = {split: np.asarray(split_samples.read([0])).shape[1] for split, split_samples in samples.items()}
    for split, width in widths.items():
        if width != widths["train"]:
            raise UserError(
                f"{splits[split].raw.name} has {width} features a row, the training rows have {widths['train']}"
            )
