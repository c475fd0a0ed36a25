"""The cost of a method before it runs, in forward passes; `throughput` converts it into seconds.

A dry run executes the method's own epochs, so every method has a cost model without declaring one. It is as exact as
the noise rate that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleantune.errors import UserError
from cleantune.methods.protocol import Phase
from cleantune.pipeline.dry_run import DryRun

MIN_ROWS = 1000
"""Samples of a dry run, where there are as many."""
MIN_ROWS_PER_CLASS = 12
"""Samples of a class that suffice to fit a mixture."""


@dataclass(frozen=True)
class Workload:
    """Numbers of samples and classes."""

    train: int
    validation: int
    test: int
    classes: int

    @property
    def all(self) -> int:
        """Return the number of samples of all splits."""
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a method; samples of two models, and views, count each for itself.

    The unit is one forward pass of one sample; a sample that is trained on through the backbone counts 3.
    """

    num_extracted: float
    """Training samples, and cached views of them, whose features are extracted once."""
    num_evaluated: float
    """Samples that pass through the backbone without gradients."""
    num_trained: float
    """Samples that pass through the backbone with gradients."""
    num_cached: float
    """Samples that cached features replace, in evaluation and training."""
    training_samples: float
    optimizer_steps: float
    evaluation_forward_passes: float
    """Forward passes over validation and test: an upper bound."""

    @property
    def forward_passes(self) -> float:
        """Return the forward passes with cached features, as a run counts them."""
        return self.num_extracted + self.num_evaluated + 3 * self.num_trained

    @property
    def forward_passes_uncached(self) -> float:
        """Return the forward passes if every sample passed through the frozen backbone each time."""
        return self.num_cached + self.num_evaluated + 3 * self.num_trained


def estimate_cost(
    todo: Sequence[Phase], workload: Workload, noise_rate: float = 0.0, views: int = 0, rows: int | None = None
) -> CostEstimate:
    """Estimate the cost of phases by a dry run.

    Args:
        todo: Phases as `training.epochs.phases` returns them.
        workload: Numbers of samples and classes.
        noise_rate: Expected fraction of wrong labels; it decides how many samples are selected.
        views: Augmented views of each training sample that are cached for the method.
        rows: Samples of the dry run; the default is as many as every class needs.
    """
    count = min(workload.train, rows or max(MIN_ROWS, MIN_ROWS_PER_CLASS * workload.classes))
    run = DryRun(workload.classes, count, workload.train / count, noise_rate, todo[0].num_nets)
    for phase in todo:
        run.run(phase)
    held_out = (workload.validation + workload.test) * (run.tune_epochs + run.feature_updates)
    held_out += workload.validation * run.label_passes
    return CostEstimate(
        num_extracted=workload.train * (any(phase.scope == "head" for phase in todo) + views),
        num_evaluated=run.num_evaluated,
        num_trained=run.num_trained,
        num_cached=run.cached,
        training_samples=run.training_samples,
        optimizer_steps=run.optimizer_steps,
        evaluation_forward_passes=todo[0].num_nets * held_out,
    )


def try_estimate_cost(todo: Sequence[Phase], workload: Workload, noise_rate: float, views: int) -> CostEstimate | None:
    """Return the estimate of `estimate_cost`, or None if a dry run is not possible."""
    try:
        return estimate_cost(todo, workload, noise_rate, views)
    except (UserError, RuntimeError, ValueError, IndexError):
        return None
