"""A run after training, before anything of it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleantune.config import Config
from cleantune.deliver import Delivery
from cleantune.loop import Loop
from cleantune.material import Material
from cleantune.records import Row


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
