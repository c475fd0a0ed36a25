"""Train the cells of an experiment; cells with the same data and model share features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cleantune.backbones import Backbone
from cleantune.config.run import Config, configure
from cleantune.config.schema import merge
from cleantune.data import Data, load
from cleantune.methods.protocol import Run
from cleantune.methods.robust_loss import CE
from cleantune.methods.turn import TURN
from cleantune.pipeline.cached_views import views_to_cache
from cleantune.pipeline.cost_model import try_estimate_cost
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.plan import expected_noise_rate, workload_of
from cleantune.pipeline.resolve import open_model
from cleantune.studies.compare.estimate import uncached_forward_passes
from cleantune.studies.grid import folder_name
from cleantune.studies.training_cell import Noise, shared_inputs, summarize, train_cell, with_noise
from cleantune.studies.turn_paper.experiment import Cell
from cleantune.training.epochs import phases
from cleantune.utils.console import Console

Analysis = Callable[[FinishedRun], Mapping[str, Any]]
"""Function from a trained cell to further values of its record."""
SELECTION = ("selected", "purity", "recall")


@dataclass(frozen=True)
class TURNWithoutSelection(TURN):
    """TURN that fine-tunes on all samples: the row of Table 4 without sample selection (there *cleansing*)."""

    def tune_epoch(self, run: Run) -> None:
        """Train one epoch of cross-entropy on all samples."""
        run.learn(run.net, CE().loss)


class CellRunner:
    """Trains cells and keeps the data, backbone and features of the last one for the next."""

    def __init__(
        self,
        sources: Mapping[tuple[str, str], Mapping[str, Any]],
        folder: Path,
        console: Console,
        analysis: Analysis | None = None,
    ) -> None:
        """Begin without any data.

        Args:
            sources: Config tables data, model and run by the names of data and model.
            folder: Folder in which backend and precisions of each pair of data and model are kept.
            console: Where progress is shown.
            analysis: Function whose values join the record of each trained cell.
        """
        self.sources, self.folder, self.console, self.analysis = sources, folder, console, analysis
        self._pair: tuple[str, str] | None = None
        self._inputs: RunInputs | None = None
        self._noisy: tuple[tuple[str, int], RunInputs, Noise] | None = None

    def run(self, cell: Cell, path: Path) -> dict[str, Any]:
        """Train a cell in a folder and return the values of its record.

        Raises:
            UserError: Data, model or settings do not fit.
        """
        table = merge(dict(cell.settings), self.sources[cell.data, cell.model])
        config = configure(table)
        inputs = self._shared(cell, config)
        kind = inputs.backbone.architecture.model_type if inputs.backbone is not None else None
        config = configure(table, kind)
        if not cell.select_samples:
            settings = {f.name: getattr(config.method, f.name) for f in fields(TURN)}
            config = replace(config, method=TURNWithoutSelection(**settings))
        draw = (cell.noise, cell.seed)
        if self._noisy is None or self._noisy[0] != draw:
            self._noisy = (draw, *with_noise(inputs, *draw))
        _, noisy, noise = self._noisy
        run = train_cell(config, noisy, path, noise)
        values = cell_values(run, summarize(run))
        return values | (dict(self.analysis(run)) if self.analysis else {})

    def _shared(self, cell: Cell, config: Config) -> RunInputs:
        """Return the inputs of a pair of data and model, before noise."""
        pair = (cell.data, cell.model)
        if self._inputs is None or self._pair != pair:
            self._pair, self._inputs, self._noisy = pair, None, None
            data: Data = load(config.data, config.run.cache)
            backbone: Backbone | None = open_model(config.model, features_only=False)
            compute = self.folder / f"{folder_name(pair, repr(pair))}.json"
            self._inputs = shared_inputs(config, data, backbone, self.console, trains=True, path=compute)
        return self._inputs


def cell_values(run: FinishedRun, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracies, the last selection, cost and the epochs with a selection.

    The best epoch is searched in the last phase, as the methods of the paper report it.
    """
    rows = [dict(row) for row in run.metrics if row.get("selected") is not None]
    last = rows[-1] if rows else {}
    accuracy, cost, noise = summary["accuracy"], summary["cost"], summary["noise"]
    return {
        "accuracy_last": accuracy["last_epoch"],
        "accuracy_best_validation": accuracy["best_validation"],
        "noise_true_rate": noise.get("true_rate"),
        "forward_passes": cost["forward_passes"],
        "forward_passes_uncached": uncached_passes(run, cost),
        "seconds": cost["seconds"]["total"],
        **{name: last.get(name) for name in SELECTION},
        "rows": rows,
    }


def uncached_passes(run: FinishedRun, cost: Mapping[str, Any]) -> int | None:
    """Return the forward passes of a run had no features been cached, by the cost model."""
    config, data = run.config, run.inputs.data
    todo = phases(config.method, run.inputs.learning_rate)
    views = len(views_to_cache(todo, config.run.cached_augmentations))
    rate = expected_noise_rate(None, data)
    return uncached_forward_passes(cost, try_estimate_cost(todo, workload_of(data), rate, views))
