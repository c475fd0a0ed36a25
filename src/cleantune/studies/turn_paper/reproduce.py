"""Reproduce one table or figure of TURN's paper and compare with its numbers: the verb `reproduce`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig
from cleantune.config.schema import from_dict
from cleantune.data import load as load_data
from cleantune.errors import UserError
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import write_table, write_text
from cleantune.studies import synthetic as synthetic_data
from cleantune.studies.grid import FAILED, Grid, Record, open_study
from cleantune.studies.turn_paper import downloads, page, sheets
from cleantune.studies.turn_paper.cells import CellRunner
from cleantune.studies.turn_paper.experiment import Cell, Experiment, Pretrained, Source, read, relocate, select
from cleantune.studies.turn_paper.feature_analysis import analyze_features
from cleantune.studies.turn_paper.numbers import KEYS
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "accuracy_last", "accuracy_best_validation", "selected", "purity", "recall", "noise_true_rate", "forward_passes",
    "forward_passes_uncached", "seconds",
)  # fmt: skip
"""Numeric columns of reproduce.parquet, which failed cells lack."""


@dataclass(frozen=True)
class Reproduction:
    """A finished experiment of the paper."""

    path: Path
    """Folder of the experiment."""
    table: pd.DataFrame
    """One row per cell, with the paper's numbers in the columns `paper_…`."""
    text: str
    """The tables for the console."""


def reproduce(
    block: str,
    *,
    out: str | Path,
    synthetic: bool = False,
    only: Iterable[str] = (),
    data: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    seeds: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Reproduction:
    """Run the experiments of a table or figure of TURN's paper (arXiv:2310.17668), next to its numbers.

    Args:
        block: `table2`, `table3`, `table4`, `table5`, `table9`, `figure2`, `figure3`, or the path of a TOML file.
        out: Folder of `reproduce.html`, `reproduce.md`, `reproduce.parquet`, and a folder for each cell.
        synthetic: Run on 200 synthetic images and tiny random networks; every output says so.
        only: `KEY=VALUE`, such as `model=ViT-B/16` or `noise=symmetric:0.9`: cells that match all of them.
        data: Paths of the data by loader: `{"cifar100": "/data/cifar-100-binary"}`.
        models: Paths of the models by their name in the experiment.
        seeds: Number of seeds (0, 1, …) instead of the experiment's.
        resume: Continue: finished cells are kept, failed ones run again.
        overwrite: Remove an earlier reproduction from `out` first.
        quiet: Print nothing.

    Raises:
        UserError: Data or a model are missing (the message says where to get them), or a name is unknown.
    """
    if synthetic and (data or models):
        raise UserError("--synthetic creates data and models; leave --data and --model out")
    experiment = relocate(read(block), data or {}, models or {})
    if seeds is not None:
        experiment = replace(experiment, seeds=tuple(range(seeds)))
    cells = select(experiment.cells(), only)
    out, console = Path(out), Console(quiet)
    settings = {"synthetic": synthetic, **_without_none(asdict(experiment))}
    open_study(out, "reproduction", settings, resume=resume, overwrite=overwrite)
    if synthetic:
        console.info(sheets.WARNING)
        experiment = make_synthetic(experiment, out / "synthetic")
    try:
        sources = open_sources(experiment, cells, out, synthetic, console)
    except UserError:
        if not resume:
            shutil.rmtree(out)  # nothing has run, so the same command works once the data are there
        raise
    analysis = analyze_features if experiment.analysis == "features" else None
    runner = CellRunner(sources, out / "compute", Console(quiet=True), analysis)
    grid = Grid(out / "cells", cells, console)
    records = [names_of(cell) | grid.run(cell, partial(runner.run, cell), describe) for cell in cells]
    return publish(experiment, records, out, synthetic, console)


def names_of(cell: Cell) -> dict[str, Any]:
    """Return the columns that name a cell."""
    return {name: getattr(cell, name) for name in (*KEYS, "seed")}


def describe(record: Record) -> str:
    """Return the progress line of a finished cell."""
    return f"{100 * (record['accuracy_last'] or 0):.1f} % last, {record['seconds']:.0f} s"


def make_synthetic(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment on synthetic downloads and tiny random networks, which are written into the folder."""
    sources, models = [], []
    for source in experiment.data:
        place = synthetic_data.make_download(source.loader, folder / f"synthetic-{source.loader}")
        sources.append(replace(source, path=str(place), validation_fraction=0.125))
    for number, model in enumerate(experiment.models):
        place = synthetic_data.make_network(model.architecture, folder / f"synthetic-{model.architecture}-{number}")
        models.append(replace(model, model=str(place)))
    return replace(experiment, data=tuple(sources), models=tuple(models))


def _without_none(value: Any) -> Any:
    """Return the value without entries that TOML cannot represent."""
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


def open_sources(
    experiment: Experiment, cells: Sequence[Cell], folder: Path, synthetic: bool, console: Console
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the config tables of each pair of data and model that the cells need.

    All of them are opened once, so that missing ones are found before the first cell.
    """
    data = {s.name: _open_data(s, folder, console) for s in experiment.data if any(c.data == s.name for c in cells)}
    models = {
        m.name: _open_model(m, synthetic, console) for m in experiment.models if any(c.model == m.name for c in cells)
    }
    cache = {"run": {"cache": str(folder / "cache")}} if synthetic else {}
    return {(s, m): {"data": data[s], "model": models[m]} | cache for s in data for m in models}


def _open_data(source: Source, folder: Path, console: Console) -> dict[str, Any]:
    console.info(f"data {source.name}: {source.path}")
    where = f"{source.name}: {downloads.WHERE[source.loader]}; --data {source.loader}=PATH names its place"
    try:
        table = downloads.load(source.loader, source.path, folder / "data" / Path(source.path).name, source.subset)
        if "validation" not in table:
            table["validation_fraction"] = source.validation_fraction
        load_data(from_dict(DataConfig, table, "data"))
    except UserError as error:
        raise UserError(f"{error} ({where})") from error
    return table


def _open_model(model: Pretrained, synthetic: bool, console: Console) -> dict[str, Any]:
    console.info(f"model {model.name}: {model.model}")
    try:
        open_model(ModelConfig(model=model.model), features_only=False)
    except UserError as error:
        raise UserError(f'{error} (for {model.name}; --model "{model.name}=FOLDER" names another place)') from error
    return {"model": model.model} | ({"precision": "float32"} if synthetic else {})


def publish(
    experiment: Experiment, records: Sequence[Record], folder: Path, synthetic: bool, console: Console
) -> Reproduction:
    """Write the results as Parquet, Markdown and HTML, and return them."""
    import pandas as pd

    rows = [{k: v for k, v in record.items() if k not in ("rows", "points")} for record in records]
    frame = pd.DataFrame(rows).assign(synthetic=synthetic)
    for name in NUMBERS:
        frame[name] = pd.to_numeric(frame[name]) if name in frame else float("nan")
    table = sheets.with_paper_numbers(frame, experiment.block)
    write_table(folder / "reproduce.parquet", lambda path: table.to_parquet(path, index=False))
    tables = sheets.sheets(table, experiment.block)
    failed = [
        f"{', '.join(str(record[key]) for key in KEYS if record[key])}: {record['reason']}"
        for record in records
        if record["status"] == FAILED
    ]
    markdown = sheets.markdown(tables, experiment.title, experiment.block, synthetic, failed)
    write_text(folder / "reproduce.md", markdown)
    write_text(folder / "reproduce.html", page.render(experiment, table, records, tables, synthetic, failed))
    console.info(f"page: {folder / 'reproduce.html'}")
    return Reproduction(folder, table, sheets.console_text(tables, experiment.block, synthetic))
