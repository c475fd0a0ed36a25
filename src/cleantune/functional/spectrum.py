"""The spectrum of features: singular values, how evenly they are spread, and how far the largest one dominates.

Source: SVE and LSVR of arXiv:2309.17002, section 2.4; nmtune spec 2. Natural logarithms throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from cleantune.errors import UserError

Normalize = Literal["l2"]
Center = Literal["row", "column"]
PRESETS: dict[str, dict[str, Any]] = {
    "official": {"normalize": "l2", "center": "row"},
    "paper": {"normalize": None, "center": None},
}
"""What is done to features before: by the authors' code, rows of length 1 and then without their own mean over the D
coordinates; by the paper's text, nothing. The values differ a lot, so each is told with its preset."""
BLOCK = 8192
"""Rows that are in memory at a time."""
BANDS = (0, 20, 500)
"""Ranks, from 0, at which the bands of the paper's figures begin."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of features, and what is read from them."""

    values: Float[np.ndarray, " K"]
    """Falling, min(M, D) of them, float64."""
    samples: int
    """M."""
    width: int
    """D."""
    normalize: str | None = None
    """What was done to each row first: `l2` for length 1, or nothing."""
    center: str | None = None
    """What was then taken away: `row`, each row's own mean; `column`, the mean of the rows; or nothing."""

    @property
    def shares(self) -> Float[np.ndarray, " K"]:
        """p_i = sigma_i / sum of all."""
        shares: np.ndarray = self.values / self.values.sum()
        return shares

    @property
    def sve(self) -> float:
        """Singular value entropy, -sum p_i ln p_i, 0..ln min(M, D): how many directions are in use."""
        p = self.shares[self.shares > 0]
        return max(0.0, float(-(p * np.log(p)).sum()))

    @property
    def dominant_share(self) -> float:
        """p_1, the share of the largest singular value."""
        return float(self.shares[0])

    @property
    def lsvr(self) -> float:
        """Largest singular value ratio, -ln p_1: it is larger where the dominant direction is weaker."""
        return max(0.0, -math.log(self.dominant_share))

    @property
    def effective_rank(self) -> float:
        """exp(SVE): as many equal singular values would have the same entropy."""
        return math.exp(self.sve)


def spectrum(features: Any, *, normalize: Normalize | None = "l2", center: Center | None = "row") -> Spectrum:
    """The spectrum of features; the defaults are the preset `official`, `**PRESETS["paper"]` is the other one.

    The singular values come from the smaller of the two matrices of inner products, D x D or M x M, summed in float64
    over blocks of rows: millions of rows need no more memory than that matrix, and features may lie on disk. A value
    below about 1e-8 of the largest cannot be told from zero and is zero.

    Args:
        features: [M, D], array, tensor or memory-mapped.
        normalize: `l2`: divide every row by its length (a row of zeros stays); None: not.
        center: `row`: subtract from each row its own mean over the D coordinates; `column`: the mean of the rows;
            None: neither.

    Raises:
        UserError: There are no rows, they are no matrix, not finite, or nothing is left of them.
    """
    if normalize not in (None, "l2") or center not in (None, "row", "column"):
        raise UserError(f'normalize is "l2" or None and center "row", "column" or None, not {normalize!r}, {center!r}')
    shape = tuple(getattr(features, "shape", ()) or np.shape(features))
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"a spectrum is of features [M, D], not of {list(shape)}")
    count, width = shape
    mean = np.zeros(width)
    if center == "column":
        mean = sum((block.sum(0) for block in _blocks(features, normalize, center)), mean) / count
    if count < width:
        gram = _between_rows(features, normalize, center, mean)
    else:
        gram = np.zeros((width, width))
        for block in _blocks(features, normalize, center):
            block -= mean
            gram += block.T @ block
    squares = np.linalg.eigvalsh(gram)[::-1]
    squares = np.where(squares > np.finfo(np.float64).eps * max(shape) * squares[0], squares, 0.0)
    if squares[0] <= 0:
        raise UserError("all features are zero once normalized and centered, so they have no spectrum")
    return Spectrum(np.sqrt(squares), count, width, normalize, center)


def sve(features: Any, *, normalize: Normalize | None = "l2", center: Center | None = "row") -> float:
    """Singular value entropy of features [M, D]; arguments and errors are those of `spectrum`."""
    return spectrum(features, normalize=normalize, center=center).sve


def lsvr(features: Any, *, normalize: Normalize | None = "l2", center: Center | None = "row") -> float:
    """Largest singular value ratio of features [M, D]; arguments and errors are those of `spectrum`."""
    return spectrum(features, normalize=normalize, center=center).lsvr


def band_sums(values: Float[np.ndarray, " K"], bands: tuple[int, ...] = BANDS) -> Mapping[str, float]:
    """Share of the sum of the singular values that lies in each band of ranks; a band without ranks has 0."""
    total = float(values.sum())
    shares = {f"{a}-{b - 1}": float(values[a:b].sum()) / total for a, b in itertools.pairwise(bands)}
    return shares | {f"{bands[-1]}-": float(values[bands[-1] :].sum()) / total}


def _blocks(features: Any, normalize: str | None, center: str | None, rows: int = BLOCK) -> Iterator[np.ndarray]:
    """Rows in float64, normalized and centered by row; each block is new."""
    for start in range(0, len(features), rows):
        block = features[start : start + rows]
        x = np.array(block.detach().cpu().double().numpy() if hasattr(block, "detach") else block, np.float64)
        if not np.isfinite(x).all():
            row = start + int((~np.isfinite(x).all(1)).argmax())
            raise UserError(f"row {row} (from 0) of the features is not finite; leave it out")
        if normalize == "l2":
            lengths = np.linalg.norm(x, axis=1, keepdims=True)
            x /= np.where(lengths > 0, lengths, 1.0)
        if center == "row":
            x -= x.mean(axis=1, keepdims=True)
        yield x


def _between_rows(features: Any, normalize: str | None, center: str | None, mean: np.ndarray) -> np.ndarray:
    """Inner products of all pairs of rows; there are fewer rows than columns."""
    x = np.concatenate(list(_blocks(features, normalize, center))) - mean
    gram: np.ndarray = x @ x.T
    return gram
