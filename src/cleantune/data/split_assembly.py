"""Pieces of tables on their way to splits, and the seeded draws between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from cleantune.config.data import DataConfig
from cleantune.data.raw_table import RawTable
from cleantune.data.splits import draw_count, draw_fraction
from cleantune.errors import UserError


@dataclass(frozen=True, eq=False)
class SplitPart:
    """Rows of a part on their way to a split."""

    part: RawTable
    rows: Int[np.ndarray, " N"]
    """Row numbers in the part."""
    own: bool
    """Whether they come from DATA itself, not from a file beside it."""
    y: Int[np.ndarray, " N"] | None = None
    truth: Int[np.ndarray, " N"] | None = None

    def take(self, keep: np.ndarray) -> SplitPart:
        """Some of the rows, by mask or numbers."""
        y, truth = (None if value is None else value[keep] for value in (self.y, self.truth))
        return replace(self, rows=self.rows[keep], y=y, truth=truth)

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Its labels, once they are read."""
        assert self.y is not None
        return self.y


def draw_splits(
    spec: DataConfig, pieces: dict[str, SplitPart], classes: Sequence[str], notes: list[str]
) -> dict[str, SplitPart]:
    """The splits in their order, from labeled pieces: drawn where asked for, rows without a label apart.

    Raises:
        UserError: Where no labeled training row is left.
    """
    rng = np.random.default_rng(spec.split_seed)
    splits: dict[str, SplitPart] = {}
    unlabeled = {split: piece.take(piece.labels < 0) for split, piece in pieces.items()}
    labeled = {split: piece.take(piece.labels >= 0) for split, piece in pieces.items()}
    train = labeled["train"]
    if "test" in labeled:
        if spec.test_fraction:
            notes.append("test_fraction is not used: the data has test rows")
        if len(unlabeled["test"].rows):
            notes.append(f"{len(unlabeled['test'].rows)} test rows have no label and are left out")
        splits["test"] = labeled["test"]
    elif spec.test_fraction:
        drawn = draw_fraction(train.labels, spec.test_fraction, rng)
        splits["test"], train = _judged(train.take(drawn), spec, notes), train.take(~drawn)
    if spec.limit is not None and spec.limit < len(train.rows):
        notes.append(f"drew {spec.limit} of {len(train.rows)} training rows (--limit)")
        train = train.take(draw_count(train.labels, spec.limit, rng))
    if "validation" in labeled:
        splits["validation"] = labeled["validation"]
    elif spec.validation_fraction:
        drawn = draw_fraction(train.labels, spec.validation_fraction, rng)
        splits["validation"], train = train.take(drawn), train.take(~drawn)
    splits["train"] = train
    _note_classes(train, classes, notes)
    rest = _unlabeled([unlabeled[split] for split in ("train", "validation") if split in unlabeled], notes)
    if rest is not None:
        splits["unlabeled"] = rest
    order = ("train", "validation", "test", "unlabeled")
    return {split: splits[split] for split in order if split in splits and len(splits[split].rows)}


def _judged(test: SplitPart, spec: DataConfig, notes: list[str]) -> SplitPart:
    if test.truth is None or (spec.test_label is not None and spec.test_label != spec.true_label):
        return test
    notes.append(f'the test rows are judged by their true labels, the column "{spec.true_label}", where they are known')
    return replace(test, y=np.where(test.truth >= 0, test.truth, test.labels))


def _unlabeled(pieces: Sequence[SplitPart], notes: list[str]) -> SplitPart | None:
    pieces = [piece for piece in pieces if len(piece.rows)]
    if not pieces:
        return None
    if len(pieces) > 1 and pieces[0].part is not pieces[1].part:
        # one split stands on one table; those of the validation file can be predicted on their own
        notes.append(f"{len(pieces[1].rows)} validation rows of {pieces[1].part.name} have no label and are left out")
        pieces = pieces[:1]
    count = sum(len(piece.rows) for piece in pieces)
    notes.append(f"{count} rows have no label: they are kept out of training and predicted at the end")
    merged = replace(pieces[0], rows=np.concatenate([piece.rows for piece in pieces]))
    truths = [piece.truth for piece in pieces if piece.truth is not None]
    return replace(
        merged, y=np.full(count, -1, np.int64), truth=np.concatenate(truths) if len(truths) == len(pieces) else None
    )


def _note_classes(train: SplitPart, classes: Sequence[str], notes: list[str]) -> None:
    if not len(train.rows):
        raise UserError(f"{train.part.name}: no labeled training rows are left; lower the fractions or raise the limit")
    sizes = np.bincount(train.labels, minlength=len(classes))
    for size, what in ((0, "no training row"), (1, "one training row alone")):
        few = [name for name, n in zip(classes, sizes, strict=True) if n == size]
        if few:
            notes.append(
                f"{len(few)} of {len(classes)} classes have {what}: {', '.join(few[:8])}{', ...' * (len(few) > 8)}"
            )
