"""Injection of label noise into data with clean labels; test labels are never changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL.Image import Image

from cleantune.config.data import DataConfig
from cleantune.data.columns import Columns
from cleantune.data.dataset import Data, Samples, compute_fingerprint
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.data.raw_table import RawTable
from cleantune.data.split_assembly import SplitPart
from cleantune.data.writers import relocate_image_paths, set_column, write_table
from cleantune.noise import flip_labels, format_noise, measure_noise, parse_noise
from cleantune.utils.arrays import object_array

CORRUPTED_SPLITS = ("train", "validation")
"""Splits whose given labels receive noise."""
INSTANCE_NOISE_SIZE = 32
"""Side in pixels of the images that instance-dependent noise is computed from, as in CIFAR."""


def corrupt(data: Data, noise: str, seed: int) -> tuple[Data, dict[str, Any]]:
    """Inject noise into the given labels of the training and validation splits.

    Known true labels are kept; for other samples the labels before the noise become the true ones.

    Args:
        data: Data as `load` returns it.
        noise: Specification such as `symmetric:0.6`; see `cleantune.noise.parse_noise`.
        seed: Seed of the noise.

    Returns:
        The new data, and the measured noise of both splits together: `noise`, `seed`, `rate` (fraction of wrong
        labels), `class_histogram` and `class_purity` (by name), `largest_share`. For `none`, the data themselves and
        the first two values.

    Raises:
        UserError: The noise is unknown or does not fit the data.
    """
    model = parse_noise(noise)
    if model.kind == "none":  # the given labels need not be the true ones
        return data, {"noise": "none", "seed": seed}
    splits = [split for split in CORRUPTED_SPLITS if split in data.rows]
    before = np.concatenate([data.rows[split].y for split in splits])
    truth = np.concatenate([data.truth.get(split, np.full(len(data.rows[split]), -1)) for split in splits])
    truth = np.where(truth >= 0, truth, before)
    reads_samples = model.kind == "instance" and data.kind != "text"
    x = np.concatenate([_vectors(data.rows[split].samples) for split in splits]) if reads_samples else None
    after = flip_labels(model, before, len(data.classes), seed, x=x, names=data.classes)
    rows, truths = dict(data.rows), dict(data.truth)
    bounds = np.cumsum([len(rows[split]) for split in splits])[:-1]
    for split, split_y, split_truth in zip(splits, np.split(after, bounds), np.split(truth, bounds), strict=True):
        rows[split], truths[split] = replace(rows[split], y=split_y), split_truth
    measured = measure_noise(after, truth, len(data.classes))
    by_name = {key: dict(zip(data.classes, measured[key], strict=True)) for key in ("class_histogram", "class_purity")}  # type: ignore[arg-type]
    fingerprint = compute_fingerprint(data.classes, rows, truths)
    noisy = replace(data, rows=rows, truth=truths, fingerprint=fingerprint)
    return noisy, {"noise": format_noise(model), "seed": seed, **measured, **by_name}


def write_corrupted(config: DataConfig, noise: str, seed: int, out: str | Path) -> dict[str, Any]:
    """Write the data as one table with noisy given labels and a column `true_label`.

    All other columns and rows are kept. Data from several tables get a column `split`, and paths of images become
    relative to `out`. Test labels are not changed.

    Args:
        config: Data; no rows are drawn from them.
        noise: Specification such as `symmetric:0.6`.
        seed: Seed of the noise.
        out: File to write: `.parquet`, `.csv`, `.tsv`, `.jsonl`, or for features `.npz`.

    Returns:
        The measured noise, as from `corrupt`.

    Raises:
        UserError: As from `load` and `corrupt`, or the format of `out` cannot represent the data.
    """
    data, parts, columns = assemble(replace(config, validation_fraction=0.0, test_fraction=0.0, limit=None))
    noisy, measured = corrupt(data, noise, seed)
    out = Path(out)
    raw_tables = list({id(part.raw): part.raw for part in parts.values()}.values())
    tables = []
    for raw in raw_tables:
        own_parts = {split: part for split, part in parts.items() if part.raw is raw}
        table = _replace_labels(raw, own_parts, noisy, columns)
        if len(raw_tables) > 1:
            table = set_column(table, "split", pa.array(_split_names(raw, own_parts)))
        if columns.kind == "image":
            table = relocate_image_paths(table, raw.folder, columns.sample, out)
        tables.append(table)
    write_table(pa.concat_tables(tables, promote_options="default"), columns.kind, columns.sample, columns.label, out)
    return measured


def _vectors(samples: Samples) -> np.ndarray:
    """Return features, or the pixels of small images, as one vector per sample."""
    if samples.kind == "features":
        return np.asarray(samples.read(range(len(samples))))
    side = INSTANCE_NOISE_SIZE
    vectors = np.zeros((len(samples), side * side * 3), np.uint8)
    for i in range(len(samples)):
        image = samples.read([i])[0]
        if isinstance(image, Image):  # an unreadable image stays black; it is excluded from training anyway
            vectors[i] = np.asarray(image.resize((side, side))).reshape(-1)
    return vectors


def _replace_labels(raw: RawTable, parts: dict[str, SplitPart], noisy: Data, columns: Columns) -> pa.Table:
    """Return a table with noisy labels and the column `true_label`."""
    labels = read_labels(raw, columns.label, [])
    given = object_array([*(labels.names if labels.is_class_label else labels.values), None])[labels.codes]
    true = given.copy()
    values = object_array([*(noisy.classes if labels.is_class_label else noisy.class_values), None])
    for split, part in parts.items():
        if split in CORRUPTED_SPLITS:
            given[part.rows] = values[noisy.rows[split].y]
        if split in noisy.truth:
            true[part.rows] = values[noisy.truth[split]]
    table = set_column(raw.table, columns.label, pa.array(given.tolist()))
    return set_column(table, "true_label", pa.array(true.tolist())).replace_schema_metadata(None)


def _split_names(raw: RawTable, parts: dict[str, SplitPart]) -> list[str | None]:
    names = np.full(len(raw), None, dtype=object)
    for split, part in parts.items():
        names[part.rows] = "train" if split == "unlabeled" else split
    return names.tolist()
