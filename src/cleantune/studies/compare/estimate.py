"""What a matrix is expected to cost, said before it starts, and how much of that is left while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cleantune.data import Data
from cleantune.errors import UserError
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.cost_model import CostEstimate, Workload, estimate_cost
from cleantune.pipeline.plan import expected_noise_rate, measure_machine
from cleantune.pipeline.throughput import BUDGET, Throughput
from cleantune.studies.compare.cells import Shared
from cleantune.studies.compare.matrix import RATES, Cell, Entry, Matrix
from cleantune.utils.console import Console
from cleantune.utils.format import count, duration

Kind = tuple[Entry, int]
"""An entry and the number of a model: cells of one kind cost about the same."""


@dataclass
class Plan:
    """The expected cost of every kind of cell, corrected by what cells of this matrix really took."""

    spent: dict[Kind, CostEstimate | None]
    """None where the rehearsal could not be held."""
    seconds: dict[Kind, float]
    left: list[Cell] = field(default_factory=list)
    total: int = 0
    took: dict[Kind, list[float]] = field(default_factory=dict)

    def begin(self, cells: Sequence[Cell]) -> None:
        """The cells that are still to be run."""
        self.left, self.total = list(cells), len(cells)

    def done(self, cell: Cell, seconds: float) -> None:
        """A cell has taken so long."""
        self.left = [other for other in self.left if other != cell]
        self.took.setdefault((cell.entry, cell.model), []).append(seconds)

    def seconds_left(self) -> float:
        """Of the cells still to be run: what others of their kind took, else what is expected, scaled by experience."""
        foreseen = sum(self.seconds[kind] * len(times) for kind, times in self.took.items())
        real = sum(sum(times) for times in self.took.values())
        scale = real / foreseen if foreseen > 0 else 1.0
        kinds = [(cell.entry, cell.model) for cell in self.left]
        return sum(float(np.mean(self.took[k])) if k in self.took else scale * self.seconds[k] for k in kinds)

    def progress(self, cell: Cell, matrix: Matrix) -> str:
        """The line that is said when a cell starts."""
        done = self.total - len(self.left)
        model = f", {matrix.labels[cell.model]}" if len(matrix.models) > 1 else ""
        rate = f", learning rate x {cell.rate:.3g}" if cell.rate != 1 else ""
        what = f"{cell.entry.name} {cell.entry.tuning}, {cell.noise}{model}, seed {cell.seed}{rate}"
        return f"{done} of {self.total} cells done, about {duration(self.seconds_left())} left; running: {what}"


UNKNOWN = Throughput(1.0, 1.0, 1.0)


def planned(matrix: Matrix, data: Data, shared: list[Shared], console: Console, *, probe: bool = True) -> Plan:
    """Rehearse every kind of cell, probe the machine, and say what is to be expected.

    Args:
        matrix: All of it.
        data: Before any noise.
        shared: By model.
        console: Told.
        probe: Whether anything is left to be run; else there is nothing to expect and the machine is not probed.
    """
    train, validation, test = (len(data.rows[s]) if s in data.rows else 0 for s in ("train", "validation", "test"))
    sizes = Workload(train, validation, test, len(data.classes))
    speeds = [speed_of(each, data, BUDGET / len(shared)) if probe else UNKNOWN for each in shared]
    wrong = float(np.mean([expected_noise_rate(noise, data) for noise in matrix.noises]))
    spent: dict[Kind, CostEstimate | None] = {}
    seconds: dict[Kind, float] = {}
    views = [0] * len(shared)
    for m, each in enumerate(shared):
        for entry, todo in each.todo.items():
            cached = len(views_to_cache(todo, each.config.run.cached_augmentations)) if each.backbone is not None else 0
            views[m] = max(views[m], cached)
            try:
                foreseen = estimate_cost(todo, sizes, wrong, cached)
            except (UserError, RuntimeError, ValueError, IndexError):
                spent[entry, m], seconds[entry, m] = None, 60.0
                continue
            spent[entry, m], seconds[entry, m] = foreseen, speeds[m].seconds(foreseen)
    plan = Plan(spent, seconds)
    if probe:
        console.info("\n".join(lines(matrix, plan, sizes, speeds, views, shared)))
    return plan


def lines(
    matrix: Matrix, plan: Plan, sizes: Workload, speeds: list[Throughput], views: list[int], shared: list[Shared]
) -> list[str]:
    """What is expected, as a table."""
    cells = len(matrix.noises) * len(matrix.seeds)
    trials = (len(RATES) - 1) * len(matrix.noises) if matrix.tune else 0
    out = [f"expected, by the cost model and a probe of this machine ({sizes.train:,} training samples):"]
    heads = ("model", "tuning", "entry", "forward_passes a cell", "minutes a cell", "cells", "minutes")
    rows, total, minutes = [heads], 0.0, 0.0
    for (entry, m), foreseen in plan.spent.items():
        each = plan.seconds[entry, m] / 60
        forward_passes = "unknown" if foreseen is None else count(foreseen.forward_passes)
        total += (0 if foreseen is None else foreseen.forward_passes) * (cells + trials)
        minutes += each * (cells + trials)
        many = str(cells) + (f" + {trials}" if trials else "")
        rows.append(
            (
                matrix.labels[m],
                entry.tuning,
                entry.name,
                forward_passes,
                f"{each:.1f}",
                many,
                f"{each * (cells + trials):.1f}",
            )
        )
    extraction = sum(
        (sizes.all + views[m] * sizes.train) / speeds[m].inference
        for m, each in enumerate(shared)
        if each.backbone is not None
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    left = 3
    for row in rows:
        cut = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        out.append("  " + "  ".join(cut).rstrip())
    out.append(
        f"in all {count(total)} forward_passes and about {duration(60 * minutes)}, of which finished cells are spared;"
        f" features once a model, unless cached: about {duration(extraction)}"
    )
    return out


def speed_of(shared: Shared, data: Data, budget: float) -> Throughput:
    """What this machine does in a second with a model."""
    trains = any(phase.scope == "all" for todo in shared.todo.values() for phase in todo)
    return measure_machine(shared.config, data, shared.backbone, trains, budget)[0]
