"""One cell after the other: data, model and noise are gathered once for all cells that share them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from cleantune.backbones import Backbone
from cleantune.config.run import Config, configure
from cleantune.config.schema import merge
from cleantune.data import Data
from cleantune.errors import UserError
from cleantune.functional import metrics
from cleantune.methods.protocol import EpochMetrics, Run
from cleantune.methods.robust_loss import CE
from cleantune.methods.turn import TURN
from cleantune.pipeline.inputs import HeadFactory, RunInputs, prepare_inputs
from cleantune.pipeline.resolve import load_data, open_model
from cleantune.pipeline.train_run import extraction_cost
from cleantune.studies.turn_paper.experiment import Cell
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.trainer import Trainer
from cleantune.utils.console import Console

Look = Callable[[Trainer, RunInputs, int], dict[str, Any]]
"""Numbers of a trained cell beyond its rows, given its seed."""


@dataclass(frozen=True)
class TURNWithoutSelection(TURN):
    """TURN that fine-tunes on every sample: the row of Table 4 without cleansing."""

    def tune_epoch(self, run: Run) -> None:
        """One pass of cross-entropy over every sample."""
        run.learn(run.net, CE().loss)


@dataclass
class CellRunner:
    """Runs cells, and keeps what the next one can use again."""

    console: Console
    look: Look | None = None
    """Asked after a cell is trained; its answer joins the numbers of the cell."""
    _material: tuple[Any, RunInputs, float | None] | None = None
    _backbone: tuple[Any, Backbone | None] | None = None

    def run(self, cell: Cell, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[EpochMetrics]]:
        """Train one cell.

        Args:
            cell: Its names and settings.
            found: The tables data and model of a configuration, which say where both are.

        Returns:
            The numbers of the cell, and its rows, one an epoch.

        Raises:
            UserError: Data, model or settings do not serve.
        """
        table = merge(dict(cell.settings), found)
        config, material, rate = self._gathered(cell, table)
        start = time.perf_counter()
        method = config.method
        if not cell.cleanse:
            method = TURNWithoutSelection(**{f.name: getattr(method, f.name) for f in fields(TURN)})
        todo = phases(method, material.learning_rate)
        heads = HeadFactory(material.num_classes, config.model.head_init, cell.seed)
        loop = Trainer(
            material.make_models(todo[0].num_nets, heads),
            material.splits(),
            material.num_classes,
            cell.seed,
            heads,
            material.device,
            cost=extraction_cost(material, todo),
        )
        rows = list(train(todo, loop, Evaluator(material.data)))
        seconds = time.perf_counter() - start
        numbers = results(rows) | {"noise_true_rate": rate, "forward_passes": loop.cost.forward_passes}
        numbers["seconds"] = round(seconds + material.seconds, 3)
        return numbers | (self.look(loop, material, cell.seed) if self.look else {}), rows

    def _gathered(self, cell: Cell, table: dict[str, Any]) -> tuple[Config, RunInputs, float | None]:
        """Configuration and material; what the cell before had is used again where it is the same."""
        config = configure(table)
        opened = (config.model, config.augmentation)
        if self._backbone is None or self._backbone[0] != config.model:
            self._backbone = (config.model, open_model(config.model, features_only=False))
        backbone = self._backbone[1]
        config = configure(table, backbone.architecture.model_type if backbone else None)
        key = (opened, config.data, config.run)
        if self._material is None or self._material[0] != key:
            self._material = None
            data, noise = load_data(config, self.console)
            material = prepare_inputs(config, data, backbone, self.console, trains_backbone=True)
            self._material = (key, material, noise["rate"] if noise else known_rate(data))
        return config, *self._material[1:]


def known_rate(data: Data) -> float | None:
    """Share of training labels that are wrong, where true ones are known without noise having been put in."""
    truth = data.truth.get("train")
    if truth is None or not (truth >= 0).any():
        return None
    agreed = metrics.accuracy(data.rows["train"].y[truth >= 0], truth[truth >= 0])
    return None if agreed is None else 1 - agreed


def results(rows: list[EpochMetrics]) -> dict[str, Any]:
    """Accuracies on test, of the last epoch and of that with the best validation accuracy, and the last selection.

    Best is looked for in the last phase, as the methods of the paper report it.

    Raises:
        UserError: Nothing was trained.
    """
    if not rows:
        raise UserError("the method has no epoch: set epochs above 0")
    final = [row for row in rows if row["round"] == rows[-1]["round"]]
    judged = [row for row in final if row["accuracy_validation"] is not None] or final[-1:]
    best = max(judged, key=lambda row: row["accuracy_validation"] or 0.0)
    selections = [row for row in rows if row.get("selected") is not None]
    last: Mapping[str, Any] = selections[-1] if selections else {}
    accuracies = {"accuracy_last": rows[-1]["accuracy_test"], "accuracy_best_validation": best["accuracy_test"]}
    return accuracies | {name: last.get(name) for name in ("selected", "purity", "recall")}
