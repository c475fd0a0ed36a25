"""Cells of a transfer study: features once a model and data set, a head a cell, a record on disk for each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Shaped

from cleantune.backbones import Backbone as Opened
from cleantune.config.run import ModelConfig
from cleantune.data import Rows
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.estimators import fit_arrays
from cleantune.features.cache import features_key
from cleantune.features.extract import extract
from cleantune.functional import metrics
from cleantune.functional.spectrum import PRESETS, spectrum
from cleantune.noise import flip_labels, parse_noise
from cleantune.pipeline.compute import select_inference
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import cache_folder, read_json, write_json, write_table, write_text
from cleantune.studies.evaluate import by_domain, refuse_unknown
from cleantune.studies.transfer.sets import Sets, Tested, numbers, sets_of
from cleantune.studies.transfer.study import Backbone, Cell, Study
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

if TYPE_CHECKING:
    import pandas as pd


def run(study: Study, out: str | Path, *, console: Console | None = None, cache: str | None = None) -> pd.DataFrame:
    """Train and test every cell that has no record yet, and write the table, its summary and its figures.

    Args:
        study: What is compared.
        out: Folder of `cells/` (a record each), results.parquet, results.md and the figures; it is gone on with.
        console: Told how far it is.
        cache: Of features; None: the usual one.

    Returns:
        One row a cell and domain.

    Raises:
        UserError: A model or data set is missing or does not fit; what is finished stays on disk.
    """
    folder, console = Path(out), console or Console()
    cells, start = study.cells(), time.perf_counter()
    left = [cell for cell in cells if not _done(folder, cell)]
    console.info(f"{len(cells)} cells, {len(cells) - len(left)} of them done")
    for k, (cell, record) in enumerate(_records(left, cache, console), 1):
        write_json(folder / "cells" / cell.file, record)
        minutes = (time.perf_counter() - start) / k * (len(left) - k) / 60
        console.info(f"{k} of {len(left)}: {_said(cell, record)}; about {minutes:.0f} minutes left")
        if k < len(left) and (left[k].model, left[k].seed) != (cell.model, cell.seed):
            publish(study, gathered(study, folder), folder)  # a look at what is there does not wait for the end
    frame = gathered(study, folder)
    publish(study, frame, folder)
    return frame


def _done(folder: Path, cell: Cell) -> bool:
    return (folder / "cells" / cell.file).is_file()


def _said(cell: Cell, record: dict[str, Any]) -> str:
    noise = "" if cell.noise == "none" else f", {cell.noise}"
    scores = [float("nan") if row["score"] is None else 100 * row["score"] for row in record["rows"]]
    words = f", out of domain {np.mean(scores[1:]):.1f}" if len(scores) > 1 else ""
    return f"{cell.model.name}, {cell.task.name}{noise}, {cell.tuning.name}, seed {cell.seed}: {scores[0]:.1f}{words}"


def gathered(study: Study, folder: Path) -> pd.DataFrame:
    """The rows of all finished cells of a study, in its order."""
    import pandas as pd

    rows = []
    for cell in study.cells():
        if _done(folder, cell):
            named = {"model": cell.model.name, "gamma": cell.model.gamma, "model_seed": cell.model.seed}
            named |= {"task": cell.task.name, "noise": cell.noise, "fraction": cell.fraction}
            named |= {"tuning": cell.tuning.name, "seed": cell.seed, "metric": cell.task.metric}
            record = read_json(folder / "cells" / cell.file)
            shared = {"seconds": record["seconds"], "warnings": "; ".join(record["warnings"])}
            rows += [named | row | shared for row in record["rows"]]
    return pd.DataFrame(rows)


def publish(study: Study, frame: pd.DataFrame, folder: Path) -> None:
    """results.parquet, results.md, and the figures for which there is enough."""
    from cleantune.studies.transfer.figures import figures
    from cleantune.studies.transfer.table import markdown

    if not len(frame):
        return
    write_table(folder / "results.parquet", lambda path: frame.to_parquet(path, index=False))
    drawn = figures(study, frame)
    for name, svg in drawn.items():
        write_text(folder / f"{name}.svg", svg)
    write_text(folder / "results.md", markdown(study, frame, list(drawn)))


# -- cells -------------------------------------------------------------------------------------------------------------


def _records(left: list[Cell], cache: str | None, console: Console) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The record of each cell; data are read once a task, models opened once, features made once of both."""
    sets: dict[str, Sets] = {}
    bank: BackboneFeatures | None = None
    made: dict[str, Features] = {}
    for cell in left:
        name = cell.task.name
        if name not in sets:
            sets[name] = sets_of(cell.task)
        if bank is None or bank.model != cell.model:
            bank, made = BackboneFeatures(cell.model, cache, console), {}
        if name not in made:
            made[name] = Features(bank, sets[name], name)
        yield cell, trained(cell, sets[name], made[name], bank)


class BackboneFeatures:
    """Features of rows by one backbone, from the cache where it holds them."""

    def __init__(self, model: Backbone, cache: str | None, console: Console) -> None:
        self.model = model
        self.cache = cache_folder(cache)
        self.console = console
        spec = ModelConfig(model=None if model.model == "none" else model.model, image_size=model.image_size or None)
        try:
            self.backbone: Opened | None = open_model(spec, features_only=model.model == "none")
        except UserError as error:
            place = f'the model "{model.name}"; --model "{model.name}=FOLDER" names another place'
            raise UserError(f"{error} ({place})") from None
        self.spec = spec

    @property
    def kind(self) -> str:
        """What it reads."""
        return "features" if self.backbone is None else self.backbone.architecture.kind

    @property
    def architecture(self) -> str:
        """Its type, on which presets depend."""
        return "" if self.backbone is None else self.backbone.architecture.model_type

    def of(self, rows: Rows, title: str) -> Any:
        """Features [N, D] of rows, memory-mapped where they come from the cache.

        Raises:
            UserError: Rows are of another kind, or one cannot be read.
        """
        if rows.samples.kind != self.kind:
            raise UserError(f"{title} holds {rows.samples.kind}, but the model {self.model.name} reads {self.kind}")
        if self.backbone is None:
            return np.asarray(rows.samples.read(range(len(rows))), np.float32)
        assert self.backbone.preprocess is not None
        with self.console.progress(f"reading {title}") as told:
            prepared = make_model_inputs(rows.samples, self.backbone.preprocess, self.cache, told)
        self.backbone.to(pick_device("auto"))
        backend = select_inference(self.backbone, prepared, self.spec, len(rows))
        key = features_key(self.backbone, rows.samples.fingerprint, backend)
        with self.console.progress(f"features of {title}") as told:
            found = extract(self.backbone, prepared, backend, self.cache, key, told)
        if found.unreadable:
            place = next(iter(found.unreadable.values()))
            raise UserError(
                f"{len(found.unreadable)} of {len(rows)} samples of {title} cannot be read, the first is {place}"
            )
        return found


class Features:
    """Features of all rows of a task by one backbone."""

    def __init__(self, bank: BackboneFeatures, sets: Sets, name: str) -> None:
        self.train = bank.of(sets.train, name)
        self.tested = [bank.of(tested.data.rows, tested.data.name) for tested in sets.tested]


def share(y: Int[np.ndarray, " N"], fraction: float, seed: int) -> Int[np.ndarray, " M"]:
    """The rows of a fraction: floor(fraction n_c) of every class, at least one (nmtune spec 1.4)."""
    if fraction == 1.0:
        return np.arange(len(y))
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(y == c))[: max(1, int(fraction * (y == c).sum()))] for c in np.unique(y)]
    return np.sort(np.concatenate(parts))


def trained(cell: Cell, sets: Sets, features: Features, bank: BackboneFeatures) -> dict[str, Any]:
    """The record of one cell: a row a domain, the first in domain."""
    start = time.perf_counter()
    method = cell.tuning.configured(bank.architecture)
    rows = share(sets.y, cell.fraction, cell.seed)
    x, classes = features.train[rows], len(sets.classes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        if cell.task.regression:
            y, back = _standardized(sets.numbers()[rows])
            head, history = fit_arrays.fit_head(fit_arrays.as_regression(method), x, y, np.ones(len(y)), 1, cell.seed)
        else:
            labels = flip_labels(parse_noise(cell.noise), sets.y[rows], classes, cell.seed, x=x, names=sets.classes)
            head, history = fit_arrays.fit_head(method, x, labels, np.ones(len(labels)), classes, cell.seed)
    out = []
    for place, (tested, given) in enumerate(zip(sets.tested, features.tested, strict=True)):
        scores, z = (np.concatenate(part) for part in zip(*fit_arrays.predict_head(head, given), strict=True))
        found = _numbers(back * scores[:, 0], tested) if cell.task.regression else _classes(scores, sets, tested)
        for domain, row in found.items():
            role = "id" if place == 0 else "ood"
            seen = _spectra(z[tested.data.domains == domain])
            named = {"data": tested.data.name, "domain": domain, "role": role, "score": row[cell.task.metric]}
            out.append(named | row | seen)
    losses = {k: v for k, v in history[-1].items() if k.startswith("loss")}
    told = [str(one.message) for one in said if one.category is UserWarning]
    return {"rows": out, "losses": losses, "warnings": told, "seconds": time.perf_counter() - start}


def _standardized(y: Shaped[np.ndarray, " N"]) -> tuple[Shaped[np.ndarray, " N"], float]:
    deviation = float(y.std()) or 1.0
    return (y - y.mean()) / deviation, deviation


def _classes(scores: np.ndarray, sets: Sets, tested: Tested) -> dict[str, dict[str, Any]]:
    e = np.exp(scores - scores.max(1, keepdims=True))
    refuse_unknown(tested.data, sets.classes, tested.mapping)
    return by_domain(e / e.sum(1, keepdims=True), sets.classes, tested.data, tested.mapping, tested.subset)


def _numbers(predicted: np.ndarray, tested: Tested) -> dict[str, dict[str, Any]]:
    y, out = numbers(tested.data.names)[tested.data.codes], {}
    for domain in dict.fromkeys(tested.data.domains.tolist()):
        here = tested.data.domains == domain
        out[domain] = {"samples": int(here.sum()), "pearson": metrics.pearson(predicted[here], y[here])}
    return out


def _spectra(z: np.ndarray) -> dict[str, float]:
    """SVE and LSVR of what the classifier sees, by the authors' code and, as `…_raw`, by the paper's text."""
    code, raw = (spectrum(z, **PRESETS[name]) for name in ("official", "paper"))
    return {"sve": code.sve, "lsvr": code.lsvr, "sve_raw": raw.sve, "lsvr_raw": raw.lsvr}
