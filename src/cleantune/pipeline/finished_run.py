"""A run after training, before anything of it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleantune.config.run import Config
from cleantune.methods.protocol import Row
from cleantune.pipeline.inputs import Material
from cleantune.pipeline.model_selection import Delivery
from cleantune.training.trainer import Loop


@dataclass(frozen=True)
class Baseline:
    """The honest baseline: a CE linear probe on the same features."""

    accuracy: dict[str, float | None]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """A run after training, before anything of it is written."""

    config: Config
    material: Material
    run: Loop
    rows: list[Row]
    delivery: Delivery
    baseline: Baseline
    noise: dict[str, Any] | None
    notes: list[str]
