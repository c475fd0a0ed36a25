"""A trained run before its files are written."""

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
    """The baseline of a run: a CE linear probe on the same features."""

    accuracy: dict[str, float | None]
    """Accuracy on `test` and `validation`."""
    seconds: float


@dataclass(frozen=True)
class FinishedRun:
    """A trained run before its files are written."""

    config: Config
    inputs: RunInputs
    trainer: Trainer
    """Trainer with the selected model."""
    metrics: list[EpochMetrics]
    selected_model: SelectedModel
    baseline: Baseline
    noise: dict[str, Any] | None
    """Measurements of the injected noise."""
