"""Estimate what a matrix costs before it starts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.data import Data
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.cost_model import CostEstimate, Workload, try_estimate_cost
from cleantune.pipeline.plan import expected_noise_rate, measure_machine, workload_of
from cleantune.pipeline.throughput import BUDGET, Throughput
from cleantune.studies.compare.matrix import LEARNING_RATE_FACTORS, Matrix
from cleantune.utils.format import count, duration

if TYPE_CHECKING:
    from cleantune.studies.compare.run import ModelContext

NOT_MEASURED = Throughput(1.0, 1.0, 1.0)
UNKNOWN_SECONDS = 60.0
"""Assumed duration of a cell whose method cannot be estimated."""
HEADS = ("model", "tuning", "entry", "forward passes per cell", "minutes per cell", "cells", "minutes")
NUM_WORDS = 3
"""Columns of words, which are aligned to the left."""


@dataclass(frozen=True)
class MatrixEstimate:
    """Estimated cost of every kind of cell, which is an entry with the index of a model."""

    matrix: Matrix
    workload: Workload
    costs: dict[Hashable, CostEstimate | None]
    """None if the method cannot be estimated."""
    seconds: dict[Hashable, float]
    extraction_seconds: float
    """Seconds to extract all features, unless they are cached."""

    def lines(self) -> list[str]:
        """Return the estimate as the lines of a table."""
        matrix = self.matrix
        cells = len(matrix.noises) * len(matrix.seeds)
        trials = (len(LEARNING_RATE_FACTORS) - 1) * len(matrix.noises) if matrix.tune else 0
        rows, total, seconds = [HEADS], 0.0, 0.0
        for m, name in enumerate(matrix.model_names):
            for entry in matrix.entries:
                cost, per_cell = self.costs[entry, m], self.seconds[entry, m]
                passes = "unknown" if cost is None else count(cost.forward_passes)
                total += (0.0 if cost is None else cost.forward_passes) * (cells + trials)
                seconds += per_cell * (cells + trials)
                number = str(cells) + (f" + {trials}" if trials else "")
                minutes = f"{per_cell / 60:.1f}", f"{per_cell * (cells + trials) / 60:.1f}"
                rows.append((name, entry.tuning, entry.name, passes, minutes[0], number, minutes[1]))
        return [
            f"estimate from the cost model and a measurement of this machine ({self.workload.train:,} training):",
            *aligned(rows),
            f"total {count(total)} forward passes and about {duration(seconds)}, less for finished cells;"
            f" features once per model, unless cached: about {duration(self.extraction_seconds)}",
        ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of a table as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        pairs = list(zip(row, widths, strict=True))
        cells = [f"{c:<{w}}" for c, w in pairs[:NUM_WORDS]] + [f"{c:>{w}}" for c, w in pairs[NUM_WORDS:]]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def estimate_matrix(matrix: Matrix, data: Data, contexts: Sequence[ModelContext], *, probe: bool) -> MatrixEstimate:
    """Estimate the cost of every kind of cell by a dry run of its method and a probe of the machine.

    Args:
        matrix: The matrix.
        data: Data before noise.
        contexts: The opened models.
        probe: Whether to measure the machine; not needed if no cell is left.
    """
    workload = workload_of(data)
    rate = float(np.mean([expected_noise_rate(noise, data) for noise in matrix.noises]))
    costs: dict[Hashable, CostEstimate | None] = {}
    seconds: dict[Hashable, float] = {}
    extraction = 0.0
    for m, context in enumerate(contexts):
        throughput = NOT_MEASURED
        if probe:
            args = (context.config, data, context.backbone, context.trains_backbone, BUDGET / len(contexts))
            throughput = measure_machine(*args)[0]
        num_views = 0
        for entry, todo in context.phases.items():
            views = len(views_to_cache(todo, context.config.run.cached_augmentations))
            views = 0 if context.backbone is None else views
            num_views = max(num_views, views)
            cost = costs[entry, m] = try_estimate_cost(todo, workload, rate, views)
            seconds[entry, m] = UNKNOWN_SECONDS if cost is None else throughput.seconds(cost)
        if context.backbone is not None:
            extraction += (workload.all + num_views * workload.train) / throughput.inference
    return MatrixEstimate(matrix, workload, costs, seconds, extraction)


def uncached_forward_passes(cost: Mapping[str, Any], estimate: CostEstimate | None) -> int | None:
    """Return the forward passes of a run had no features been cached.

    The passes that cached features replaced come from the cost model, in proportion to the samples trained on.

    Args:
        cost: The table `cost` of a run's summary.
        estimate: Estimated cost of the run.
    """
    if estimate is None or not cost or not estimate.training_samples:
        return None
    replaced = estimate.num_cached * cost["training_samples"] / estimate.training_samples
    extracted = estimate.num_extracted if cost["forward_passes"] else 0.0
    return round(float(cost["forward_passes"] - extracted + replaced))
