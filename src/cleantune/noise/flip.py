"""Label flips by a noise model, transition matrices, and measurement of the resulting noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Real

from cleantune.errors import UserError, did_you_mean
from cleantune.noise.instance import draw_from, instance_noise
from cleantune.noise.model import Noise

CIFAR10_MAP = ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3))
"""truck > automobile, bird > airplane, deer > horse, cat > dog, dog > cat."""

# fmt: off
CIFAR100_SUPERCLASS = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)
"""Superclass of each of CIFAR-100's fine classes, in alphabetical order of the classes."""
# fmt: on


def flip_labels(
    noise: Noise,
    y: Int[np.ndarray, " N"],
    classes: int,
    seed: int,
    *,
    x: Real[np.ndarray, "N L"] | None = None,
    names: Sequence[str] | None = None,
) -> Int[np.ndarray, " N"]:
    """Return noisy labels; `y` is not changed.

    Args:
        noise: Noise model.
        y: True labels, 0..C-1.
        classes: Number of classes C.
        seed: Seed of all draws.
        x: Flattened samples (pixels 0..255 in the order height, width, channel, or features), for instance noise only.
        names: Names of the classes in `map`; None for their numbers.

    Returns:
        Labels after the noise.

    Raises:
        UserError: The model does not fit these classes, or instance noise has no samples.
    """
    rng = np.random.default_rng(seed)
    if noise.kind == "none" or len(y) == 0:
        return y.copy()
    if noise.kind == "symmetric":
        return _symmetric(y, classes, noise, rng)
    if noise.kind == "instance":
        if x is None:
            raise UserError("instance noise needs images or features; for text take symmetric, asymmetric or pair")
        return instance_noise(y, x, classes, noise, rng)
    if noise.kind == "asymmetric" and noise.groups in ("cifar10", "map"):
        return _by_map(y, _pairs(noise, classes, names), noise.rate, rng)
    return draw_from(transition_matrix(noise, classes)[y], rng)


def transition_matrix(noise: Noise, classes: int, names: Sequence[str] | None = None) -> Float[np.ndarray, "C C"]:
    """Return the probability of each given label (column) by true label (row), for all kinds but `instance`.

    Args:
        noise: Noise model.
        classes: Number of classes C.
        names: Names of the classes in `map`; None for their numbers.

    Raises:
        UserError: The noise depends on the sample, or the model does not fit these classes.
    """
    unchanged = np.eye(classes)
    if noise.kind == "none":
        return unchanged
    if noise.kind == "symmetric":
        others = np.full((classes, classes), 1 / classes) if noise.include_self else _others(classes)
        return (1 - noise.rate) * unchanged + noise.rate * others
    if noise.kind == "matrix":
        return _matrix(Path(noise.file), classes)
    if noise.kind == "instance":
        raise UserError("instance noise depends on the sample and has no transition matrix")
    to = np.arange(classes)
    if noise.kind == "pair":
        to = (to + 1) % classes
    elif noise.groups in ("cifar10", "map"):
        for before, after in _pairs(noise, classes, names):
            to[before] = after
    else:
        to = _next_in_group(noise.groups, classes)
    return (1 - noise.rate) * unchanged + noise.rate * unchanged[to]


def measure_noise(
    y: Int[np.ndarray, " N"], y_true: Int[np.ndarray, " N"], classes: int
) -> dict[str, float | list[int] | list[float | None]]:
    """Measure label noise against true labels.

    Args:
        y: Given labels.
        y_true: True labels; samples with a negative one count in the histogram only.
        classes: Number of classes C.

    Returns:
        `rate` (fraction of wrong labels), `class_histogram` (sizes of the given classes), `class_purity` (fraction of
        right labels of each given class, None for an empty one) and `largest_share` (fraction of all samples in the
        largest given class).
    """
    size = np.bincount(y, minlength=classes)
    has_truth = y_true >= 0
    checked = np.bincount(y[has_truth], minlength=classes)
    right = np.bincount(y[has_truth & (y == y_true)], minlength=classes)
    return {
        "rate": float((y != y_true)[has_truth].mean()) if has_truth.any() else 0.0,
        "class_histogram": [int(n) for n in size],
        "class_purity": [float(r / n) if n else None for r, n in zip(right, checked, strict=True)],
        "largest_share": float(size.max() / max(size.sum(), 1)),
    }


def _others(classes: int) -> Float[np.ndarray, "C C"]:
    """Return uniform probabilities of the other classes."""
    return (1 - np.eye(classes)) / max(classes - 1, 1)


def _symmetric(y: np.ndarray, classes: int, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Flip labels uniformly by one of three conventions of the field.

    A fixed number of labels is redrawn over all classes (`include_self`), each label is flipped independently to
    another class, or a fixed number of each class is flipped to other classes (`exact`, arXiv:2309.17002).
    """
    if noise.exact:
        return _exactly(y, classes, noise.rate, rng)
    if not noise.include_self:
        moved = rng.random(len(y)) < noise.rate
        return np.where(moved, (y + rng.integers(1, max(classes, 2), len(y))) % classes, y)
    drawn = y.copy()
    chosen = rng.permutation(len(y))[: round(noise.rate * len(y))]
    drawn[chosen] = rng.integers(0, classes, len(chosen))
    return drawn


def _exactly(y: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Flip the same fraction of every class, rounded, to other classes."""
    drawn = y.copy()
    for c in range(classes if classes > 1 else 0):
        members = np.flatnonzero(y == c)
        chosen = rng.permutation(members)[: round(rate * len(members))]
        drawn[chosen] = (c + rng.integers(1, classes, len(chosen))) % classes
    return drawn


def _by_map(y: np.ndarray, pairs: Sequence[tuple[int, int]], rate: float, rng: np.random.Generator) -> np.ndarray:
    """Flip exactly a fraction of each mapped class, as ELR does."""
    drawn = y.copy()
    for before, after in pairs:
        members = np.flatnonzero(y == before)
        drawn[rng.permutation(members)[: round(rate * len(members))]] = after
    return drawn


def _pairs(noise: Noise, classes: int, names: Sequence[str] | None) -> list[tuple[int, int]]:
    """Return the pairs of true and given class of an asymmetric map."""
    if noise.groups == "cifar10":
        if classes != 10:
            raise UserError(
                f"asymmetric noise with groups=cifar10 needs 10 classes, here are {classes}; give map=a>b+c>d"
            )
        return list(CIFAR10_MAP)
    number = {name: c for c, name in enumerate(names or map(str, range(classes)))}
    pairs = []
    for pair in noise.map.split("+"):
        before, arrow, after = (piece.strip() for piece in pair.partition(">"))
        if not arrow:
            raise UserError(f'asymmetric noise: "{pair}" is no pair of classes; write map=cat>dog+dog>cat')
        for name in (before, after):
            if name not in number:
                raise UserError(f'asymmetric noise: there is no class "{name}"{did_you_mean(name, number)}')
        pairs.append((number[before], number[after]))
    if len({before for before, _ in pairs}) < len(pairs):
        raise UserError(f'asymmetric noise: a class occurs twice before ">" in map={noise.map}; give each one target')
    return pairs


def _next_in_group(groups: str, classes: int) -> Int[np.ndarray, " C"]:
    """Return for each class the next one of its group."""
    if groups == "superclass" and classes != len(CIFAR100_SUPERCLASS):
        raise UserError(f"asymmetric noise with groups=superclass needs CIFAR-100's 100 classes, here are {classes}")
    group = np.array(CIFAR100_SUPERCLASS) if groups == "superclass" else np.arange(classes) // 5
    to = np.arange(classes)
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        to[members] = np.roll(members, -1)
    return to


def _matrix(file: Path, classes: int) -> Float[np.ndarray, "C C"]:
    """Read a transition matrix from a CSV file and validate it."""
    try:
        matrix = np.loadtxt(file, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise UserError(f"noise matrix {file} does not exist") from None
    except ValueError as error:
        raise UserError(f"noise matrix {file}: {error}") from None
    if matrix.shape != (classes, classes):
        raise UserError(f"noise matrix {file} has the shape {matrix.shape}, but there are {classes} classes")
    wrong = np.flatnonzero((matrix < 0).any(1) | (np.abs(matrix.sum(1) - 1) > 1e-6))
    if len(wrong):
        raise UserError(
            f"noise matrix {file}: row {wrong[0]} is not a distribution (its sum is {matrix[wrong[0]].sum():g})"
        )
    return matrix
