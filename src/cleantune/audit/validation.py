"""Validation of arrays before an audit; each error names the row."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from cleantune.errors import UserError

BLOCK = 65_536


def validate_probabilities(p: Any, name: str) -> Any:
    """Return probabilities [N, C] after checking shape and values.

    Raises:
        UserError: Another shape, values that are not finite or outside 0..1, or rows that do not sum to 1.
    """
    p = _array(p)
    if p.ndim != 2 or p.shape[1] < 2 or not len(p):
        raise UserError(
            f"{name} has the shape {list(p.shape)}; it must be [N, C] with at least one row and two classes"
        )
    step = max(256, 2_000_000 // p.shape[1])
    for start in range(0, len(p), step):
        block = np.asarray(p[start : start + step], dtype=np.float32)
        total = block.sum(1)
        bad = ~np.isfinite(total) | (block < -1e-3).any(1) | (np.abs(total - 1) > 0.02)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{name}: row {start + row} is no probability distribution (it sums to {total[row]:.4g});"
                " rows must be finite, not negative and sum to 1: use softmax"
            )
    return p


def validate_features(x: Any, name: str) -> Any:
    """Return features [N, D] after checking shape and values.

    Raises:
        UserError: Another shape, too few rows, or a value that is not finite.
    """
    x = _array(x)
    if x.ndim != 2 or len(x) < 10 or not x.shape[1]:
        raise UserError(f"{name} has the shape {list(x.shape)}; it must be [N, D] with at least ten rows")
    for start in range(0, len(x), BLOCK):
        finite = np.isfinite(np.asarray(x[start : start + BLOCK], dtype=np.float32)).all(1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise UserError(f"{name}: row {row} has a value that is not finite; repair or remove it")
    return x


def validate_labels(
    labels: Any, count: int, classes: int | None
) -> tuple[Int[np.ndarray, " N"], tuple[str, ...], tuple[Any, ...]]:
    """Return labels as class numbers, with the names and values of the classes.

    Args:
        labels: One a row.
        count: N.
        classes: C of probabilities, whose labels are the numbers 0..C-1; None takes what is there.

    Raises:
        UserError: Another length, a missing label, a number outside the classes, or one class only.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or len(given) != count:
        raise UserError(
            f"labels have the shape {list(given.shape)}, but there are {count} rows; one label per row is needed"
        )
    if given.dtype.kind == "f" and np.isfinite(given).all() and (given == given.astype(np.int64)).all():
        given = given.astype(np.int64)
    listed = given.tolist()
    missing = [i for i, v in enumerate(listed) if v is None or v != v]
    if missing:
        raise UserError(f"labels: row {missing[0]} has none; leave such rows out")
    if classes is not None:
        wrong = [i for i, v in enumerate(listed) if not isinstance(v, int) or not 0 <= v < classes]
        if wrong:
            raise UserError(
                f"labels: row {wrong[0]} is {listed[wrong[0]]!r}; with probabilities of {classes} classes labels are"
                f" the numbers 0 to {classes - 1}"
            )
        values: tuple[Any, ...] = tuple(range(classes))
        return given.astype(np.int64), tuple(map(str, values)), values
    values = tuple(sorted(set(listed), key=lambda v: (str(type(v)), v)))
    if len(values) < 2:
        raise UserError(f"labels name one class only ({values[0]!r}); an audit needs at least two")
    number = {v: k for k, v in enumerate(values)}
    return np.array([number[v] for v in listed], dtype=np.int64), tuple(map(str, values)), values


def validate_annotators(
    others: np.ndarray | None, values: tuple[Any, ...], count: int
) -> Int[np.ndarray, "A N"] | None:
    """Return further labels as class numbers, -1 where there is none or another class.

    Raises:
        UserError: Another shape.
    """
    if others is None:
        return None
    others = np.atleast_2d(others)
    if others.shape[1] != count:
        raise UserError(f"annotators have the shape {list(others.shape)}; it must be [A, {count}]")
    number = {v: k for k, v in enumerate(values)}
    return np.array([[number.get(v, -1) for v in row] for row in others.tolist()], dtype=np.int64)


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return (
        value
        if isinstance(value, np.ndarray) or (hasattr(value, "shape") and hasattr(value, "dtype"))
        else np.asarray(value)
    )
