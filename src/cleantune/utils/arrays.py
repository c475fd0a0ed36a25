"""Helpers for NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Shaped


def object_array(values: Iterable[Any]) -> Shaped[np.ndarray, " N"]:
    """Return a one-dimensional array of objects; NumPy would make strings of fixed width, or more dimensions."""
    items = list(values)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
