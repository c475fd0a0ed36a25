"""Strength of the augmentations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cleantune.methods.protocol import Range


@dataclass(frozen=True)
class ImageAugmentation:
    """Augmentation of images.

    Source: the weak view is that of TURN for CIFAR-100 (arXiv:2310.17668), which states no parameters; these are ours.
    The strong view adds RandAugment (arXiv:1909.13719) with its 14 operations.
    """

    flip: Annotated[float, Range(0.0, 1.0)] = 0.5
    """Probability of a horizontal flip; 0 for digits and letters."""
    degrees: Annotated[float, Range(0.0, 180.0)] = 10.0
    """Maximum rotation in degrees."""
    translate: Annotated[float, Range(0.0, 0.5)] = 0.1
    """Maximum translation, as a fraction of the side."""
    scale: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Maximum change of the scale, as a fraction."""
    num_ops: Annotated[int, Range(0, 10)] = 2
    """Number of RandAugment operations of a strong view."""
    magnitude: Annotated[float, Range(0.0, 30.0)] = 10.0
    """Magnitude of RandAugment, 0 to 30."""


@dataclass(frozen=True)
class TextAugmentation:
    """Augmentation of texts by dropping tokens; special tokens stay."""

    weak: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Fraction of the tokens dropped in a weak view."""
    strong: Annotated[float, Range(0.0, 0.9)] = 0.3
    """Fraction of the tokens dropped in a strong view."""
