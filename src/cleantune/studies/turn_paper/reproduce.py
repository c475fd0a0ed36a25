"""`cleantune reproduce`: one block of the paper, ours beside the paper's numbers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, read_config
from cleantune.config.schema import from_dict
from cleantune.data import load as load_data
from cleantune.errors import UserError, did_you_mean
from cleantune.pipeline.record import versions
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import read_json, write_json, write_table, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.turn_paper import downloads, features, page, sheets, standin
from cleantune.studies.turn_paper.experiment import Cell, Experiment, Pretrained, Source, read, select
from cleantune.studies.turn_paper.numbers import KEYS
from cleantune.studies.turn_paper.running import CellRunner
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Reproduced:
    """A block that was run."""

    path: Path
    """Its folder."""
    table: pd.DataFrame
    """One row a cell, with the paper's numbers in the columns `paper_…`."""
    text: str
    """The tables, for the console."""


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
) -> Reproduced:
    """Run the experiments of a table or figure of TURN's paper, and put ours beside its numbers.

    Args:
        block: `table2`, `table3`, `table4`, `table5`, `table9`, `figure2`, `figure3`, or an experiment of one's own as
            a TOML file.
        out: Folder of `reproduce.html`, `reproduce.md`, `reproduce.parquet`, and a file for each cell.
        synthetic: Run on 200 made-up images and tiny random networks; every output says so.
        only: `KEY=VALUE`, such as `model=ViT-B/16` or `noise=symmetric:0.9`: the cells that have all of it.
        data: Where data are, by loader: `{"cifar100": "/data/cifar-100-binary"}`.
        models: Where models are, by their name in the experiment.
        seeds: Seeds 0 to this, in place of the experiment's.
        resume: Go on: cells that are done are kept, failed ones run again.
        overwrite: Remove an earlier run in `out` first.
        silent: Say nothing.

    Raises:
        UserError: Data or a model are missing (the sentence says where to get them), or a name is not known.
    """
    if synthetic and (data or models):
        raise UserError("--synthetic makes up data and models; leave --data and --model out")
    made = placed(read(block), data or {}, models or {})
    if seeds is not None:
        made = replace(made, seeds=tuple(range(seeds)))
    cells = select(made.cells(), only)
    folder, console = RunDir(Path(out), resume=resume, overwrite=overwrite, kind="reproduction"), Console(quiet)
    folder.clear()
    remember(folder.path, made, synthetic)
    if synthetic:
        console.info(sheets.WARNING)
        made = in_place_of(made, folder.path / "stand-in")
    try:
        found = gathered(made, cells, folder.path, synthetic, console)
    except UserError:
        if not resume:
            shutil.rmtree(folder.path)  # nothing has run: the same command shall do once the data are there
        raise
    records = from_matrices(made, [cell for cell in cells if not special(made, cell)], found, folder.path, quiet)
    bench = CellRunner(Console(quiet=True), features.look if made.analysis == "features" else None)
    for cell, record in run_all([cell for cell in cells if special(made, cell)], found, bench, folder.path, console):
        records[cell] = record
    return publish(made, [records[cell] for cell in cells], folder.path, synthetic, console)


def special(made: Experiment, cell: Cell) -> bool:
    """Whether a matrix cannot spell the cell: its trained features are looked at, or TURN's cleansing is left out."""
    return made.analysis == "features" or not cell.cleanse


def from_matrices(
    made: Experiment, cells: list[Cell], found: Mapping[tuple[str, str], dict[str, Any]], folder: Path, quiet: bool
) -> dict[Cell, dict[str, Any]]:
    """The records of the cells that `compare` runs, a matrix a data set."""
    from cleantune.studies.turn_paper import matrix

    out: dict[Cell, dict[str, Any]] = {}
    for data in dict.fromkeys(cell.data for cell in cells):
        mine = [cell for cell in cells if cell.data == data]
        place = folder / "matrix" / re.sub(r"[^a-z0-9]+", "-", data.lower())
        out |= {cell: names_of(cell) | one for cell, one in matrix.run(made, mine, found, place, quiet).items()}
    return out


def names_of(cell: Cell) -> dict[str, Any]:
    """What a record says of its cell."""
    return {name: getattr(cell, name) for name in (*KEYS, "seed")}


def placed(made: Experiment, data: Mapping[str, str], models: Mapping[str, str]) -> Experiment:
    """The experiment with data and models where the user says that they are.

    Raises:
        UserError: The experiment has no such loader or model.
    """
    loaders, names = [s.loader for s in made.data], [m.name for m in made.models]
    for key in data:
        if key not in loaders:
            raise UserError(f'--data: this experiment has no loader "{key}"{did_you_mean(key, loaders)}')
    for key in models:
        if key not in names:
            raise UserError(f'--model: this experiment has no model "{key}"{did_you_mean(key, names)}')
    return replace(
        made,
        data=tuple(replace(s, path=data.get(s.loader, s.path)) for s in made.data),
        models=tuple(replace(m, model=models.get(m.name, m.model)) for m in made.models),
    )


def in_place_of(made: Experiment, folder: Path) -> Experiment:
    """The experiment on made-up downloads and tiny random networks, which are written into the folder."""
    sources, models = [], []
    for source in made.data:
        place = folder / f"stand-in-{source.loader}"
        if not place.is_dir():
            draft = place.with_name(
                f"{place.name}.part"
            )  # a folder that was cut short must not be taken for a whole one
            shutil.rmtree(draft, ignore_errors=True)
            standin.DOWNLOADS[source.loader](draft)
            draft.rename(place)
        sources.append(replace(source, path=str(place), validation_fraction=0.125))
    for model in made.models:
        place = folder / f"stand-in-{re.sub(r'[^a-z0-9]+', '-', model.name.lower())}"  # tables call it by this name
        if not (place / "preprocessor_config.json").is_file():
            standin.network(model.architecture, place)
        models.append(replace(model, model=str(place)))
    return replace(made, data=tuple(sources), models=tuple(models))


def remember(folder: Path, made: Experiment, synthetic: bool) -> None:
    """config.toml with the experiment as it was asked for.

    Raises:
        UserError: The folder holds another experiment, or the same one on a stand-in.
    """
    path = folder / "config.toml"
    now = json.loads(json.dumps({"synthetic": synthetic} | _without_none(asdict(made))))
    if path.is_file():
        then = read_config(path)
        differing = next((key for key in now if now[key] != then.get(key)), None)
        if differing:
            raise UserError(
                f"--resume: {differing} is not what it was, see {path};"
                " resume with the same, or start anew with --overwrite"
            )
        return
    write_text(path, tomli_w.dumps(now | {"record": {"versions": versions()}}))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


def gathered(
    made: Experiment, cells: list[Cell], folder: Path, synthetic: bool, console: Console
) -> dict[tuple[str, str], dict[str, Any]]:
    """The tables data and model of a configuration for each pair that the cells need; both are opened once.

    So what is missing shows before the first cell, and not after a day.
    """
    sources = {s.name: _data(s, folder, console) for s in made.data if any(c.data == s.name for c in cells)}
    models = {m.name: _model(m, synthetic, console) for m in made.models if any(c.model == m.name for c in cells)}
    cache = {"run": {"cache": str(folder / "cache")}} if synthetic else {}
    return {(s, m): {"data": sources[s], "model": models[m]} | cache for s in sources for m in models}


def _data(source: Source, folder: Path, console: Console) -> dict[str, Any]:
    console.info(f"data {source.name}: {source.path}")
    where = f"{source.name}: {downloads.WHERE[source.loader]}; --data {source.loader}=PATH says where it is"
    try:
        table = downloads.load(source.loader, source.path, folder / "data" / Path(source.path).name, source.subset)
        if "validation" not in table:
            table["validation_fraction"] = source.validation_fraction
        load_data(from_dict(DataConfig, table, "data"))
    except UserError as error:
        raise UserError(f"{error} ({where})") from error
    return table


def _model(model: Pretrained, synthetic: bool, console: Console) -> dict[str, Any]:
    console.info(f"model {model.name}: {model.model}")
    try:
        open_model(ModelConfig(model=model.model), features_only=False)
    except UserError as error:
        raise UserError(f'{error} (for {model.name}; --model "{model.name}=FOLDER" names another place)') from error
    return {"model": model.model} | ({"precision": "float32"} if synthetic else {})


def run_all(
    cells: list[Cell],
    found: Mapping[tuple[str, str], dict[str, Any]],
    bench: CellRunner,
    folder: Path,
    console: Console,
) -> Iterable[tuple[Cell, dict[str, Any]]]:
    """Every cell's record; one that is done is read, one that fails says why and the rest runs."""
    start, ran = time.perf_counter(), 0
    records = {cell: folder / "cells" / f"{slug(cell)}.json" for cell in cells}
    left = [cell for cell in cells if not _is_done(records[cell])]
    for k, cell in enumerate(cells, 1):
        if cell in left:
            record = _record(cell, found[cell.data, cell.model], bench)
            write_json(records[cell], record)
            ran += 1
            seconds = (time.perf_counter() - start) / ran * (len(left) - ran)
            said = record["reason"] or f"{100 * (record['accuracy_last'] or 0):.1f} % last"
            console.info(f"{k} of {len(cells)}: {', '.join(p for p in cell.key if p)}, seed {cell.seed}: {said}; "
                            f"about {seconds / 60:.0f} minutes left")  # fmt: skip
        yield cell, read_json(records[cell])


def _is_done(path: Path) -> bool:
    return path.is_file() and read_json(path)["status"] == "done"


def _record(cell: Cell, found: dict[str, Any], bench: CellRunner) -> dict[str, Any]:
    names = names_of(cell)
    try:
        numbers, rows = bench.run(cell, found)
    except Exception as error:  # one cell must not cost the others, whatever goes wrong in it
        reason = (str(error).strip().splitlines() or [""])[0]
        return names | {"status": "failed", "reason": f"{type(error).__name__}: {reason}", "rows": []}
    return names | {"status": "done", "reason": ""} | numbers | {"rows": rows}


def slug(cell: Cell) -> str:
    """A name of a file for a cell."""
    words = "_".join([*(part for part in cell.key if part), f"seed{cell.seed}"])
    mark = hashlib.sha256(repr((cell.key, cell.seed)).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^a-z0-9._]+', '-', words.lower())[:120]}-{mark}"


def publish(
    made: Experiment, records: list[dict[str, Any]], folder: Path, synthetic: bool, console: Console
) -> Reproduced:
    """Parquet, Markdown and HTML."""
    import pandas as pd

    plain = [{k: v for k, v in one.items() if k not in ("rows", "points")} for one in records]
    found = pd.DataFrame(plain).assign(synthetic=synthetic)
    for name in ("accuracy_last", "accuracy_best_validation", "selected", "purity", "recall", "noise_true_rate",
                 "forward_passes", "forward_passes_uncached", "seconds"):  # fmt: skip
        found[name] = pd.to_numeric(found[name]) if name in found else float("nan")
    table = sheets.beside(found, made.block)
    write_table(folder / "reproduce.parquet", lambda path: table.to_parquet(path, index=False))
    shown = sheets.sheets(table, made.block)
    failed = [f"{', '.join(str(one[k]) for k in KEYS if one[k])}: {one['reason']}"
              for one in records if one["status"] == "failed"]  # fmt: skip
    write_text(folder / "reproduce.md", sheets.markdown(shown, made.title, made.block, synthetic, failed))
    write_text(folder / "reproduce.html", page.render(made, table, records, shown, synthetic, failed))
    console.info(f"page: {folder / 'reproduce.html'}")
    return Reproduced(folder, table, sheets.console(shown, made.block, synthetic))
