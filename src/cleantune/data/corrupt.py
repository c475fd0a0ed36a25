"""Noise put into the labels of data, for rehearsals on clean labels; the test split is never touched."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from PIL.Image import Image

from cleantune.config.data import DataConfig
from cleantune.data.columns import Columns
from cleantune.data.dataset import Data, Samples, compute_fingerprint
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.data.raw_table import RawTable
from cleantune.data.split_assembly import SplitPart
from cleantune.data.writers import write_table
from cleantune.noise import flip_labels, format_noise, measure_noise, parse_noise
from cleantune.utils.arrays import object_array

CORRUPTED = ("train", "validation")
"""The splits that noise reaches."""

PIXELS = 32
"""Edge in pixels at which instance noise sees an image, as CIFAR has them."""


def corrupt(data: Data, noise: str, seed: int) -> tuple[Data, dict[str, Any]]:
    """The data with noise in the given labels of train and validation, and what the noise came to.

    True labels stay as they are where known; elsewhere the labels before are the true ones from then on.

    Args:
        data: As `load` gives it.
        noise: As `symmetric:0.6`; see `cleantune.noise.parse_noise`.
        seed: Same data, noise and seed: same labels.

    Returns:
        New data, and `noise`, `seed`, `rate` (share wrong), `class_histogram`, `class_purity` (by name) and
        `largest_share` of both splits together. Noise `none` gives the data itself and the first two alone.

    Raises:
        UserError: Where the noise is unknown or does not fit the data.
    """
    model = parse_noise(noise)
    if model.kind == "none":  # labels as they are: nothing says that they are the true ones
        return data, {"noise": "none", "seed": seed}
    splits = [split for split in CORRUPTED if split in data.rows]
    before = np.concatenate([data.rows[split].y for split in splits])
    known = np.concatenate([data.truth.get(split, np.full(len(data.rows[split]), -1)) for split in splits])
    seen = model.kind == "instance" and data.kind != "text"
    x = np.concatenate([_vectors(data.rows[split].samples) for split in splits]) if seen else None
    after = flip_labels(model, before, len(data.classes), seed, x=x, names=data.classes)
    truth = np.where(known >= 0, known, before)
    rows, truths = dict(data.rows), dict(data.truth)
    cuts = np.cumsum([len(rows[split]) for split in splits])[:-1]
    for split, own, own_truth in zip(splits, np.split(after, cuts), np.split(truth, cuts), strict=True):
        rows[split], truths[split] = replace(rows[split], y=own), own_truth
    measured = measure_noise(after, truth, len(data.classes))
    by_name = {key: dict(zip(data.classes, measured[key], strict=True)) for key in ("class_histogram", "class_purity")}  # type: ignore[arg-type]
    mark = compute_fingerprint(data.classes, rows, truths)
    return replace(data, rows=rows, truth=truths, fingerprint=mark), {
        "noise": format_noise(model),
        "seed": seed,
        **measured,
        **by_name,
    }


def write_corrupted(spec: DataConfig, noise: str, seed: int, out: str | Path) -> dict[str, Any]:
    """Write the data as one table with corrupted given labels and a column `true_label`; what `corrupt` measured.

    Every other column and row stays; data of several tables gets a column `split`, paths of images are written relative
    to `out`. Test rows keep their labels.

    Args:
        spec: The data; nothing is drawn from it.
        noise: As `symmetric:0.6`.
        seed: Seed of the noise.
        out: `.parquet`, `.csv`, `.tsv`, `.jsonl`, or for features `.npz`.

    Raises:
        UserError: As `load` and `corrupt`, and where the form of `out` cannot hold the data.
    """
    whole = replace(spec, validation_fraction=0.0, test_fraction=0.0, limit=None)
    data, pieces, columns = assemble(whole)
    noisy, measured = corrupt(data, noise, seed)
    out = Path(out)
    parts = list({id(piece.part): piece.part for piece in pieces.values()}.values())
    tables = []
    for part in parts:
        own = {split: piece for split, piece in pieces.items() if piece.part is part}
        table = _relabeled(part, own, noisy, columns)
        if len(parts) > 1:
            table = set_column(table, "split", pa.array(_split_names(part, own)))
        if columns.kind == "image":
            table = relocate_image_paths(table, part, columns.sample, out)
        tables.append(table)
    write_table(pa.concat_tables(tables, promote_options="default"), columns.kind, columns.sample, columns.label, out)
    return measured


def _vectors(samples: Samples) -> np.ndarray:
    if samples.kind == "features":
        return np.asarray(samples.read(range(len(samples))))
    vectors = np.zeros((len(samples), PIXELS * PIXELS * 3), np.uint8)
    for i in range(len(samples)):
        picture = samples.read([i])[0]
        if isinstance(picture, Image):  # an unreadable one stays black: it is left out of training anyway
            vectors[i] = np.asarray(picture.resize((PIXELS, PIXELS))).reshape(-1)
    return vectors


def _relabeled(part: RawTable, pieces: dict[str, SplitPart], noisy: Data, columns: Columns) -> pa.Table:
    labels = read_labels(part, columns.label, [])
    words = labels.names if labels.declared else labels.values
    given: Shaped[np.ndarray, " N"] = object_array([*words, None])[labels.codes]
    true = given.copy()
    values = noisy.classes if labels.declared else noisy.class_values
    table = object_array([*values, None])
    for split, piece in pieces.items():
        if split in CORRUPTED:
            given[piece.rows] = table[noisy.rows[split].y]
        if split in noisy.truth:
            true[piece.rows] = table[noisy.truth[split]]
    relabeled = set_column(part.table, columns.label, pa.array(given.tolist()))
    return set_column(relabeled, "true_label", pa.array(true.tolist())).replace_schema_metadata(None)


def _split_names(part: RawTable, pieces: dict[str, SplitPart]) -> list[str | None]:
    names = np.full(len(part), None, dtype=object)
    for split, piece in pieces.items():
        names[piece.rows] = "train" if split == "unlabeled" else split
    return names.tolist()


def set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with a column of this name, in the place of the one it has."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def relocate_image_paths(table: pa.Table, part: RawTable, column: str, out: Path) -> pa.Table:
    """The table with paths of images relative to where it will lie."""
    if not (pa.types.is_string(table.column(column).type) or pa.types.is_large_string(table.column(column).type)):
        return table
    folder = out.parent
    paths = [
        None if path is None else Path(os.path.relpath(part.folder / path, folder)).as_posix()
        for path in table.column(column).to_pylist()
    ]
    return set_column(table, column, pa.array(paths, pa.large_string()))
