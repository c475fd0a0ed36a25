"""A run after training, before anything of it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleantune.config.run import Config
from cleantune.methods.protocol import EpochMetrics
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.model_selection import SelectedModel
from cleantune.training.trainer import Trainer


@dataclass(frozen=True)
class Baseline:
    """The honest baseline: a CE linear probe on the same features."""

    accuracy: dict[str, float | None]
    seconds: float


@dataclass(frozen=True)
class FinishedRun:
    """A run after training, before anything of it is written."""

    config: Config
    material: RunInputs
    run: Trainer
    rows: list[EpochMetrics]
    selected_model: SelectedModel
    baseline: Baseline
    noise: dict[str, Any] | None
