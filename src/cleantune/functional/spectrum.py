"""Spectrum of features: singular values, singular value entropy (SVE) and largest singular value ratio (LSVR).

Source: NMTune (arXiv:2309.17002), section 2.4. All logarithms are natural.
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
"""Preprocessing of the features: rows of length 1, then centered by row over the D dimensions (official code), or none
(text of the paper). The values differ a lot, so that they are reported with their preset."""
BLOCK = 8192
"""Rows of a block in memory."""
BANDS = (0, 20, 500)
"""Ranks, from 0, at which the bands of the paper's figures start."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of features and the numbers derived from them."""

    values: Float[np.ndarray, " K"]
    """Singular values in descending order, float64."""
    samples: int
    """Number of samples M."""
    width: int
    """Feature dimension D."""
    normalize: str | None = None
    """Normalization of the rows: `l2` or None."""
    center: str | None = None
    """Subtracted mean: `row` (each row's mean over dimensions), `column` (mean of the rows), or None."""

    @property
    def shares(self) -> Float[np.ndarray, " K"]:
        """Return the shares p_i = sigma_i / sum of all."""
        shares: np.ndarray = self.values / self.values.sum()
        return shares

    @property
    def sve(self) -> float:
        """Return the singular value entropy, -sum p_i ln p_i, 0..ln min(M, D)."""
        p = self.shares[self.shares > 0]
        return max(0.0, float(-(p * np.log(p)).sum()))

    @property
    def dominant_share(self) -> float:
        """Return p_1, the share of the largest singular value."""
        return float(self.shares[0])

    @property
    def lsvr(self) -> float:
        """Return the largest singular value ratio, -ln p_1, which is larger if the dominant direction is weaker."""
        return max(0.0, -math.log(self.dominant_share))

    @property
    def effective_rank(self) -> float:
        """Return exp(SVE), the number of equal singular values with the same entropy."""
        return math.exp(self.sve)


@dataclass(frozen=True, eq=False)
class SpectrumResult:
    """The spectrum of one model's features of one data set."""

    data: str
    """Name of the data set."""
    model: str
    """Name of the model."""
    spectrum: Spectrum


def spectrum(features: Any, *, normalize: Normalize | None = "l2", center: Center | None = "row") -> Spectrum:
    """Compute the spectrum of features; the defaults are the preset `official`, `**PRESETS["paper"]` is the other one.

    The singular values come from the smaller Gram matrix, D x D or M x M, summed in float64 over blocks of rows, so
    that millions of rows need no more memory than this matrix; features may be memory-mapped. Values below about 1e-8
    of the largest are below the rounding error and set to zero.

    Args:
        features: Features [M, D], an array, a tensor or memory-mapped.
        normalize: `l2` divides every row by its length (a row of zeros stays zero); None does not.
        center: `row` subtracts from each row its mean over the D dimensions, `column` the mean of the rows; None does
            not.

    Raises:
        UserError: The features are empty, not a matrix, not finite, or zero after normalization and centering.
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
    """Compute the singular value entropy of features [M, D]; arguments and errors are those of `spectrum`."""
    return spectrum(features, normalize=normalize, center=center).sve


def lsvr(features: Any, *, normalize: Normalize | None = "l2", center: Center | None = "row") -> float:
    """Compute the largest singular value ratio of features [M, D]; arguments and errors are those of `spectrum`."""
    return spectrum(features, normalize=normalize, center=center).lsvr


def band_sums(values: Float[np.ndarray, " K"], bands: tuple[int, ...] = BANDS) -> Mapping[str, float]:
    """Return the share of each band of ranks in the sum of the singular values; 0 for a band without ranks."""
    total = float(values.sum())
    shares = {f"{a}-{b - 1}": float(values[a:b].sum()) / total for a, b in itertools.pairwise(bands)}
    return shares | {f"{bands[-1]}-": float(values[bands[-1] :].sum()) / total}


def _blocks(features: Any, normalize: str | None, center: str | None, rows: int = BLOCK) -> Iterator[np.ndarray]:
    """Yield blocks of rows in float64, normalized and centered by row; each block is a new array."""
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
    """Compute the inner products of all pairs of rows, for fewer rows than columns."""
    x = np.concatenate(list(_blocks(features, normalize, center))) - mean
    gram: np.ndarray = x @ x.T
    return gram
