"""Assignment of table rows to splits, with seeded draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from cleantune.config.data import DataConfig
from cleantune.data.raw_table import RawTable
from cleantune.data.splits import draw_count, draw_fraction
from cleantune.errors import UserError

SPLITS = ("train", "validation", "test", "unlabeled")
"""Names of the splits in their order."""


@dataclass(frozen=True, eq=False)
class SplitPart:
    """Rows of a table that belong to one split."""

    raw: RawTable
    rows: Int[np.ndarray, " N"]
    """Row numbers in the table."""
    y: Int[np.ndarray, " N"] | None = None
    """Given labels, once they are read."""
    truth: Int[np.ndarray, " N"] | None = None
    """True labels, if there are any."""

    def take(self, keep: np.ndarray) -> SplitPart:
        """Select rows by a mask or by position."""
        y, truth = (None if values is None else values[keep] for values in (self.y, self.truth))
        return replace(self, rows=self.rows[keep], y=y, truth=truth)

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Given labels, which must have been read."""
        assert self.y is not None
        return self.y


def draw_splits(
    config: DataConfig, parts: dict[str, SplitPart], classes: Sequence[str], notes: list[str]
) -> dict[str, SplitPart]:
    """Draw the missing splits from the training rows and separate the rows without a label.

    Args:
        config: Fractions, limit and seed.
        parts: Parts with labels, as the data define them.
        classes: Class names.
        notes: Receives messages for the user.

    Raises:
        UserError: No labeled training row remains.
    """
    rng = np.random.default_rng(config.split_seed)
    splits: dict[str, SplitPart] = {}
    unlabeled = {split: part.take(part.labels < 0) for split, part in parts.items()}
    labeled = {split: part.take(part.labels >= 0) for split, part in parts.items()}
    train = labeled["train"]
    if "test" in labeled:
        if config.test_fraction:
            notes.append("test_fraction is not used: the data has test rows")
        if len(unlabeled["test"].rows):
            notes.append(f"{len(unlabeled['test'].rows)} test rows have no label and are left out")
        splits["test"] = labeled["test"]
    elif config.test_fraction:
        drawn = draw_fraction(train.labels, config.test_fraction, rng)
        splits["test"], train = _with_true_labels(train.take(drawn), config, notes), train.take(~drawn)
    if config.limit is not None and config.limit < len(train.rows):
        notes.append(f"drew {config.limit} of {len(train.rows)} training rows (--limit)")
        train = train.take(draw_count(train.labels, config.limit, rng))
    if "validation" in labeled:
        splits["validation"] = labeled["validation"]
    elif config.validation_fraction:
        drawn = draw_fraction(train.labels, config.validation_fraction, rng)
        splits["validation"], train = train.take(drawn), train.take(~drawn)
    splits["train"] = train
    _check_classes(train, classes, notes)
    merged = _merge_unlabeled([unlabeled[split] for split in ("train", "validation") if split in unlabeled], notes)
    if merged is not None:
        splits["unlabeled"] = merged
    return {split: splits[split] for split in SPLITS if split in splits and len(splits[split].rows)}


def _with_true_labels(test: SplitPart, config: DataConfig, notes: list[str]) -> SplitPart:
    """Replace the labels of drawn test rows by their true labels if these are known."""
    if test.truth is None or (config.test_label is not None and config.test_label != config.true_label):
        return test
    notes.append(f'the test rows have their true labels, the column "{config.true_label}", if these are known')
    return replace(test, y=np.where(test.truth >= 0, test.truth, test.labels))


def _merge_unlabeled(parts: Sequence[SplitPart], notes: list[str]) -> SplitPart | None:
    """Merge the rows without a label into one part; None if there are none."""
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        return None
    if len(parts) > 1 and parts[0].raw is not parts[1].raw:
        # A split has rows of one table; rows of the validation file can be predicted on their own.
        notes.append(f"{len(parts[1].rows)} validation rows of {parts[1].raw.name} have no label and are left out")
        parts = parts[:1]
    count = sum(len(part.rows) for part in parts)
    notes.append(f"{count} rows have no label: they are kept out of training and predicted at the end")
    truths = [part.truth for part in parts if part.truth is not None]
    return replace(
        parts[0],
        rows=np.concatenate([part.rows for part in parts]),
        y=np.full(count, -1, np.int64),
        truth=np.concatenate(truths) if len(truths) == len(parts) else None,
    )


def _check_classes(train: SplitPart, classes: Sequence[str], notes: list[str]) -> None:
    """Refuse an empty training split and note classes with at most one training row."""
    if not len(train.rows):
        raise UserError(f"{train.raw.name}: no labeled training rows are left; lower the fractions or raise the limit")
    sizes = np.bincount(train.labels, minlength=len(classes))
    for size, text in ((0, "no training row"), (1, "only one training row")):
        small = [name for name, n in zip(classes, sizes, strict=True) if n == size]
        if small:
            names = ", ".join(small[:8]) + ", ..." * (len(small) > 8)
            notes.append(f"{len(small)} of {len(classes)} classes have {text}: {names}")
