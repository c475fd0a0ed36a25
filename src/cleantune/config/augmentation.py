"""Settings of the augmentations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cleantune.methods.protocol import Range


@dataclass(frozen=True)
class ImageAugmentation:
    """How far views of an image stray from it.

    Source: the weak view is TURN's for CIFAR-100 (arXiv:2310.17668; parameters ours, the paper states none), the
    strong one adds RandAugment (arXiv:1909.13719) with its 14 operations.
    """

    flip: Annotated[float, Range(0.0, 1.0)] = 0.5
    """Share of the images mirrored left to right; 0 for digits and letters."""
    degrees: Annotated[float, Range(0.0, 180.0)] = 10.0
    """Rotation, up to this either way."""
    translate: Annotated[float, Range(0.0, 0.5)] = 0.1
    """Shift, up to this share of the side either way."""
    scale: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Larger or smaller, up to this share either way."""
    num_ops: Annotated[int, Range(0, 10)] = 2
    """Operations of RandAugment drawn for each image of a strong view."""
    magnitude: Annotated[float, Range(0.0, 30.0)] = 10.0
    """Their strength, 0 to 30."""


@dataclass(frozen=True)
class TextAugmentation:
    """Share of the tokens left out of a view of a text; special tokens stay."""

    weak: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share left out of a weak view."""
    strong: Annotated[float, Range(0.0, 0.9)] = 0.3
    """Share left out of a strong view."""
