"""Runs a matrix cell by cell: what cells share is made once, finished cells stay, a failed one stops no other."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from cleantune.config.run import configure, read_config
from cleantune.config.schema import merge
from cleantune.data import Data, corrupt, load
from cleantune.errors import UserError
from cleantune.features.backend import ComputeConfig
from cleantune.noise import parse_noise
from cleantune.pipeline.inputs import RunInputs, prepare_inputs
from cleantune.pipeline.record import versions
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import read_json, write_json, write_table, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare.cells import Outcome, Shared, run_cell
from cleantune.studies.compare.estimate import Plan, planned
from cleantune.studies.compare.matrix import RATES, Cell, Matrix, resolved_table
from cleantune.studies.compare.reading import resolve
from cleantune.studies.compare.table import epochs_of, frame_of, markdown
from cleantune.training.epochs import phases
from cleantune.utils.console import Console

MATERIAL = "material.json"
"""What each model computes in, so that a resumed matrix computes in the same."""


def run(table: dict[str, Any], out: Path, *, resume: bool, overwrite: bool, quiet: bool) -> Path:
    """A matrix from its table to its page.

    Raises:
        UserError: Something the user can put right; nothing has run then, and an earlier matrix is as it was.
    """
    console = Console(quiet)
    if out.exists():  # refused before anything is loaded; one that is not there is made when nothing else is refused
        RunDir(out, resume=resume, overwrite=overwrite, kind="matrix")
    stored = read_config(out / "config.toml") if resume and (out / "config.toml").is_file() else None
    if stored is not None:
        table = with_stored(stored, table)
    if "data" not in table.get("data", {}):
        raise UserError("there are no data: name a folder, a table, embeddings or a Hugging Face dataset")
    matrix = resolve(table)
    first = matrix.config(Cell(matrix.entries[0], matrix.noises[0], 0, 0), None, False)
    data = load(first.data, first.run.cache)
    matrix = resolve(table, data.kind == "features")
    if stored is not None:
        refuse_other_settings(resolved_table(matrix), resolved_table(resolve(stored, data.kind == "features")))
    refuse_data(matrix, data)
    for note in data.notes:
        console.info(note)
    shared = [share(matrix, m, data) for m in range(len(matrix.models))]
    for noise in matrix.noises:
        if parse_noise(noise).kind != "instance" or data.kind == "text":  # that reads every image, and fits any
            corrupt(data, noise, matrix.seeds[0])
    folder = RunDir(out, resume=resume, overwrite=overwrite, kind="matrix")
    folder.clear()
    write_text(out / "config.toml", tomli_w.dumps(resolved_table(matrix) | {"record": {"versions": versions()}}))
    gc.freeze()  # what is there before the first cell is not looked through after each: that takes longer than a probe
    try:
        MatrixRunner(matrix, data, shared, folder.path, console).go()
    finally:
        gc.unfreeze()
    return out


def with_stored(stored: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What was said before under what is said now; entries are taken from one of them, whole."""
    axes = said.get("matrix", {})
    if {"methods", "scopes", "entries"} & set(axes) or {"preset", "method", "settings"} & set(said):
        stored = stored | {"matrix": {k: v for k, v in stored["matrix"].items() if k != "entries"}}
    return merge(stored, said)


def refuse_other_settings(now: dict[str, Any], then: dict[str, Any], path: str = "") -> None:
    """Refuse to go on with other settings than before.

    Raises:
        UserError: Naming the first key that differs.
    """
    for key in [*then, *(k for k in now if k not in then)]:
        a, b, place = now.get(key), then.get(key), f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            refuse_other_settings(a, b, f"{place}.")
        elif a != b:
            if place == "matrix.entries":
                a, b = ([f"{e['name']} ({e['scope']})" for e in entries] for entries in (now[key], then[key]))
                words = f"{', '.join(a)} now and were {', '.join(b)}" if a != b else "other in their settings now"
                words = f"the entries are {words}"
            else:
                words = f"{place} is {a!r} now and was {b!r}"
            raise UserError(f"--resume: {words}; resume with the same settings, or start anew with --overwrite")


def refuse_data(matrix: Matrix, data: Data) -> None:
    """Refuse data on which nothing can be compared.

    Raises:
        UserError: There is no test split, or no validation split to tune by.
    """
    if "test" not in data.rows:
        raise UserError(
            "there is no labeled test split to compare on: name one with --test or --split-column,"
            " or draw one with --test-fraction 0.2"
        )
    if matrix.tune and "validation" not in data.rows:
        raise UserError("--tune chooses on the validation split and there is none: set --validation-fraction 0.1")


def share(matrix: Matrix, m: int, data: Data) -> Shared:
    """What the cells of a model share; its backbone is opened and every entry's settings are checked with it.

    Raises:
        UserError: The model cannot be opened, or an entry's settings do not go with it.
    """
    only = data.kind == "features"
    cell = Cell(matrix.entries[0], matrix.noises[0], m, matrix.seeds[0])
    backbone = open_model(configure(matrix.run_table(cell), None, only).model, only)
    kind = backbone.architecture.model_type if backbone is not None else None
    configs = {e: matrix.config(Cell(e, matrix.noises[0], m, 0), kind, only) for e in matrix.entries}
    rate = backbone.learning_rate if backbone is not None else 0.0
    todo = {entry: phases(config.method, rate) for entry, config in configs.items()}
    idle = next((entry for entry, its in todo.items() if not its), None)
    if idle is not None:
        raise UserError(f'entry "{idle.name}": no phase has an epoch, so nothing would be trained')
    return Shared(backbone, kind, only, todo, configs[matrix.entries[0]])


class MatrixRunner:
    """A matrix on its way."""

    def __init__(self, matrix: Matrix, data: Data, shared: list[Shared], out: Path, console: Console) -> None:
        """Before its first cell."""
        self.matrix, self.data, self.shared, self.out, self.console = matrix, data, shared, out, console
        self.outcomes: list[Outcome] = []
        """Of the table's cells, in the table's order."""
        self.plan: Plan | None = None

    def go(self) -> None:
        """Every cell, and then the page."""
        cells = self.matrix.cells()
        trials = [Cell(c.entry, c.noise, c.model, c.seed, r) for c in cells for r in RATES[1:] if self.is_trial(c)]
        left = [c for c in [*cells, *trials] if not (self.folder(c) / "summary.json").is_file()]
        self.plan = planned(self.matrix, self.data, self.shared, self.console, probe=bool(left))
        self.plan.begin(left)
        for m, shared in enumerate(self.shared):
            mine = [cell for cell in cells if cell.model == m]
            # Where nothing is left to compute, neither features nor noise are needed.
            material = None if all(self.settled(cell) for cell in mine) else self.gathered(m, shared)
            rates: dict[Any, tuple[float, dict[float, float]]] = {}
            for cell, noisy, noise in self.with_labels(mine, material):
                self.outcomes.append(self.chosen(cell, shared, noisy, noise, rates))
                self.write_table()
            shared.backbone = material = noisy = None
        self.write_pages()

    def folder(self, cell: Cell) -> Path:
        """Of a cell."""
        return self.out / "cells" / self.matrix.folder(cell)

    def is_trial(self, cell: Cell) -> bool:
        """Whether learning rates are tried at this cell."""
        return self.matrix.tune and cell.seed == self.matrix.seeds[0]

    def settled(self, cell: Cell) -> bool:
        """Whether a cell needs no computing."""
        return not self.matrix.tune and (self.folder(cell) / "summary.json").is_file()

    def gathered(self, m: int, shared: Shared) -> RunInputs:
        """The data and features of a model, from the cache where it holds them."""
        path, label = self.out / MATERIAL, self.matrix.labels[m]
        kept: dict[str, Any] = read_json(path) if path.is_file() else {}
        known = ComputeConfig.from_dict(kept[label]) if label in kept else None
        trains = any(phase.scope == "all" for todo in shared.todo.values() for phase in todo)
        material = prepare_inputs(
            shared.config, self.data, shared.backbone, self.console, compute=known, trains_backbone=trains
        )
        write_json(path, kept | {label: material.compute.to_dict()})
        return material

    def with_labels(
        self, cells: list[Cell], material: RunInputs | None
    ) -> Iterator[tuple[Cell, RunInputs | None, dict[str, Any] | None]]:
        """Each cell with the material under its noise, which is drawn once for all cells of a noise and seed."""
        last, noisy, noise = None, material, None
        for cell in cells:
            if material is not None and (cell.noise, cell.seed) != last:
                last = (cell.noise, cell.seed)
                noisy, noise = with_noise(material, *last)
            yield cell, noisy, noise

    def chosen(
        self,
        cell: Cell,
        shared: Shared,
        material: RunInputs | None,
        noise: dict[str, Any] | None,
        rates: dict[Any, tuple[float, dict[float, float]]],
    ) -> Outcome:
        """The outcome of a cell; with `tune` by the learning rate that the first seed's validation split prefers."""
        if not self.matrix.tune:
            return self.one(cell, shared, material, noise)
        key = (cell.entry, cell.noise)
        tried: dict[float, Outcome] = {}
        if key not in rates:
            for rate in RATES:
                trial = Cell(cell.entry, cell.noise, cell.model, cell.seed, rate)
                tried[rate] = self.one(trial, shared, material, noise)
            judged = {rate: outcome.validation for rate, outcome in tried.items() if outcome.validation is not None}
            rates[key] = (max(judged, key=lambda rate: judged[rate]) if judged else 1.0, judged)
        rate, judged = rates[key]
        outcome = tried.get(rate) or self.one(
            Cell(cell.entry, cell.noise, cell.model, cell.seed, rate), shared, material, noise
        )
        return outcome.with_trials(judged)

    def one(self, cell: Cell, shared: Shared, material: RunInputs | None, noise: dict[str, Any] | None) -> Outcome:
        """One run, or what it left when it was run before."""
        assert self.plan is not None
        folder = self.folder(cell)
        if (folder / "summary.json").is_file():
            return Outcome.read(cell, folder, self.out)
        assert material is not None
        self.console.info(self.plan.progress(cell, self.matrix))
        start = time.perf_counter()
        outcome = run_cell(self.matrix, cell, shared, material, noise, folder, self.out)
        self.plan.done(cell, time.perf_counter() - start)
        self.console.info(f"  {outcome.words}")
        return outcome

    def write_table(self) -> None:
        """compare.parquet as far as it is known."""
        frame = frame_of(self.matrix, self.outcomes, self.plan)
        write_table(self.out / "compare.parquet", lambda path: frame.to_parquet(path, index=False))

    def write_pages(self) -> None:
        """The epochs, the Markdown table and the page."""
        from cleantune.studies.compare.page import build

        frame, epochs = frame_of(self.matrix, self.outcomes, self.plan), epochs_of(self.matrix, self.outcomes)
        write_table(self.out / "epochs.parquet", lambda path: epochs.to_parquet(path, index=False))
        write_text(self.out / "compare.md", markdown(frame))
        page = build(self.out)
        failed = sum(outcome.summary is None for outcome in self.outcomes)
        if failed:
            self.console.info(f"{failed} of {len(self.outcomes)} cells failed; --resume tries them again")
        self.console.info(f"table: {self.out / 'compare.md'}\npage: {page}")


def with_noise(material: RunInputs, noise: str, seed: int) -> tuple[RunInputs, dict[str, Any] | None]:
    """The material with noise in its labels, and what the noise came to; samples and features are the same objects."""
    from dataclasses import replace

    data, measured = corrupt(material.data, noise, seed)
    known: Mapping[str, Any] | None = measured if "rate" in measured else None
    return replace(material, data=data), dict(known) if known is not None else None
