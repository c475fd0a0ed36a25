"""Run a matrix: check it, open its models, train its cells and write the table and the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cleantune.backbones import Backbone
from cleantune.config.run import Config, read_config
from cleantune.config.schema import merge
from cleantune.data import Data, corrupt, load
from cleantune.errors import UserError
from cleantune.methods.protocol import Phase
from cleantune.noise import parse_noise
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import write_table, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare.estimate import MatrixEstimate, estimate_matrix
from cleantune.studies.compare.matrix import (
    LEARNING_RATE_FACTORS,
    Cell,
    Entry,
    Matrix,
    matrix_to_dict,
    scale_learning_rates,
)
from cleantune.studies.compare.page import build
from cleantune.studies.compare.resolve import resolve
from cleantune.studies.compare.table import Result, epochs_frame, markdown, results_frame
from cleantune.studies.grid import FAILED, Grid, Record, open_study
from cleantune.studies.training_cell import Noise, shared_inputs, summarize, train_cell, with_noise
from cleantune.training.epochs import phases
from cleantune.utils.console import Console


@dataclass
class ModelContext:
    """One model of the matrix and what its cells share."""

    backbone: Backbone | None
    """None if the data are features."""
    kind: str | None
    """Type of the backbone, on which presets depend."""
    features_only: bool
    phases: dict[Entry, tuple[Phase, ...]]
    config: Config
    """Configuration of the first entry's cell."""

    @property
    def trains_backbone(self) -> bool:
        """True if some entry trains the backbone."""
        return any(phase.scope == "all" for todo in self.phases.values() for phase in todo)


def run(table: dict[str, Any], out: Path, *, resume: bool, overwrite: bool, quiet: bool) -> Path:
    """Run a matrix from its table to its page.

    Args:
        table: The matrix as the package's docstring describes it.
        out: Folder of the matrix.
        resume: Continue the matrix in the folder.
        overwrite: Remove an earlier matrix from the folder.
        quiet: Print nothing.

    Returns:
        The folder.

    Raises:
        UserError: The user can correct something; nothing has run, and an earlier matrix is unchanged.
    """
    console = Console(quiet)
    if out.exists():  # refuse before anything is loaded, but create no folder that a later check would leave empty
        RunDir(out, resume=resume, overwrite=overwrite, kind="matrix")
    if resume and (out / "config.toml").is_file():
        table = with_stored(read_config(out / "config.toml"), table)
    if "data" not in table.get("data", {}):
        raise UserError("there are no data: name a folder, a table, embeddings or a Hugging Face dataset")
    matrix = resolve(table)
    config = matrix.config(matrix.cell(), None, False)
    data = load(config.data, config.run.cache)
    matrix = resolve(table, data.kind == "features")
    check_splits(matrix, data)
    for note in data.notes:
        console.info(note)
    contexts = [open_context(matrix, m, data) for m in range(len(matrix.models))]
    for noise in matrix.noises:
        if parse_noise(noise).kind != "instance" or data.kind == "text":  # instance noise reads all images
            corrupt(data, noise, matrix.seeds[0])
    open_study(out, "matrix", matrix_to_dict(matrix), resume=resume, overwrite=overwrite)
    MatrixRunner(matrix, data, contexts, out, console).run()
    return out


def with_stored(stored: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return the stored table with the new one merged over it; entries come from one of the two."""
    axes = table.get("matrix", {})
    if {"methods", "scopes", "entries"} & set(axes) or {"preset", "method", "settings"} & set(table):
        stored = stored | {"matrix": {k: v for k, v in stored["matrix"].items() if k != "entries"}}
    return merge(stored, table)


def check_splits(matrix: Matrix, data: Data) -> None:
    """Refuse data without the splits that the comparison needs.

    Raises:
        UserError: There is no test split, or no validation split for tuning.
    """
    if "test" not in data.rows:
        raise UserError(
            "there is no labeled test split to compare on: name one with --test or --split-column,"
            " or draw one with --test-fraction 0.2"
        )
    if matrix.tune and "validation" not in data.rows:
        raise UserError("--tune selects on the validation split and there is none: set --validation-fraction 0.1")


def open_context(matrix: Matrix, model: int, data: Data) -> ModelContext:
    """Open a model of the matrix and check every entry's settings with it.

    Raises:
        UserError: The model cannot be opened, or an entry's settings do not fit it.
    """
    features_only = data.kind == "features"
    backbone = open_model(matrix.config(matrix.cell(model=model), None, features_only).model, features_only)
    kind = backbone.architecture.model_type if backbone is not None else None
    configs = {e: matrix.config(matrix.cell(e, model=model), kind, features_only) for e in matrix.entries}
    rate = backbone.learning_rate if backbone is not None else 0.0
    todo = {entry: phases(config.method, rate) for entry, config in configs.items()}
    empty = next((entry for entry, its_phases in todo.items() if not its_phases), None)
    if empty is not None:
        raise UserError(f'entry "{empty.name}": no phase has an epoch, so nothing would be trained')
    return ModelContext(backbone, kind, features_only, todo, configs[matrix.entries[0]])


class MatrixRunner:
    """Trains the cells of a matrix and keeps its table up to date."""

    def __init__(self, matrix: Matrix, data: Data, contexts: list[ModelContext], out: Path, console: Console) -> None:
        """Find out which cells are left and show what they are expected to cost."""
        self.matrix, self.data, self.contexts, self.out, self.console = matrix, data, contexts, out, console
        cells = matrix.cells()
        first_seed = [cell for cell in cells if matrix.tune and cell.seed == matrix.seeds[0]]
        trials = [replace(cell, factor=factor) for cell in first_seed for factor in LEARNING_RATE_FACTORS[1:]]
        self.grid: Grid[Cell] = Grid(out / "cells", [*cells, *trials], console)
        self.estimate: MatrixEstimate = estimate_matrix(matrix, data, contexts, probe=bool(self.grid.pending))
        self.grid.expected_seconds = self.estimate.seconds
        if self.grid.pending:
            console.info("\n".join(self.estimate.lines()))
        self.results: list[Result] = []

    def run(self) -> None:
        """Train every cell, then write the Markdown table and the page."""
        for m, context in enumerate(self.contexts):
            self._run_model([cell for cell in self.matrix.cells() if cell.model == m], context)
            context.backbone = None
        self._write_pages()

    def _run_model(self, cells: list[Cell], context: ModelContext) -> None:
        inputs, noisy, noise, drawn = None, None, None, None
        if self.matrix.tune or any(not self.grid.is_finished(cell) for cell in cells):
            compute = self.out / "compute" / f"{cells[0].model}.json"
            trains = context.trains_backbone
            inputs = shared_inputs(context.config, self.data, context.backbone, self.console, trains, compute)
        factors: dict[tuple[Entry, str], tuple[float, dict[float, float]]] = {}
        for cell in cells:
            if inputs is not None and (cell.noise, cell.seed) != drawn:
                drawn = (cell.noise, cell.seed)
                noisy, noise = with_noise(inputs, *drawn)
            tried: dict[float, float] = {}
            if self.matrix.tune:
                key = (cell.entry, cell.noise)
                if key not in factors:
                    factors[key] = self._try_learning_rates(cell, context, noisy, noise)
                factor, tried = factors[key]
                tuned = replace(cell, factor=factor)
                self.grid.replace(cell, tuned)
                cell = tuned
            self.results.append(Result(cell, self._run_cell(cell, context, noisy, noise), self.grid.path(cell), tried))
            self._write_table()

    def _try_learning_rates(
        self, cell: Cell, context: ModelContext, inputs: RunInputs | None, noise: Noise
    ) -> tuple[float, dict[float, float]]:
        """Return the factor with the best accuracy on the noisy validation split, and the accuracy of each factor."""
        accuracies = {}
        for factor in LEARNING_RATE_FACTORS:
            record = self._run_cell(replace(cell, factor=factor), context, inputs, noise)
            if record["status"] != FAILED:
                accuracies[factor] = record["accuracy"]["validation"]
        return (max(accuracies, key=lambda factor: accuracies[factor]) if accuracies else 1.0), accuracies

    def _run_cell(self, cell: Cell, context: ModelContext, inputs: RunInputs | None, noise: Noise) -> Record:
        def compute(path: Path) -> dict[str, Any]:
            assert inputs is not None, "only finished cells need no inputs"
            config = self.matrix.config(cell, context.kind, context.features_only)
            config = scale_learning_rates(config, cell.factor, inputs.learning_rate)
            return summarize(train_cell(config, inputs, path, noise))

        return self.grid.run(cell, compute, describe, {"noise": noise})

    def _write_table(self) -> None:
        frame = results_frame(self.matrix, self.results, self.estimate)
        write_table(self.out / "compare.parquet", lambda path: frame.to_parquet(path, index=False))

    def _write_pages(self) -> None:
        frame, epochs = results_frame(self.matrix, self.results, self.estimate), epochs_frame(self.results)
        write_table(self.out / "epochs.parquet", lambda path: epochs.to_parquet(path, index=False))
        write_text(self.out / "compare.md", markdown(frame))
        page = build(self.out)
        num_failed = sum(result.record["status"] == FAILED for result in self.results)
        if num_failed:
            self.console.info(f"{num_failed} of {len(self.results)} cells failed; --resume tries them again")
        self.console.info(f"table: {self.out / 'compare.md'}\npage: {page}")


def describe(record: Record) -> str:
    """Return the progress line of a finished cell."""
    accuracy, cost = record["accuracy"], record["cost"]
    return f"test {accuracy['test']:.1%}, {cost['forward_passes']:,} forward passes, {cost['seconds']['total']:.0f} s"
