"""Spectra of features over models and data sets: a table, all singular values, and a page in rank bands."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cleantune.config.run import Config, configure
from cleantune.data import Data, load
from cleantune.errors import UserError
from cleantune.features.cache import Features
from cleantune.functional.spectrum import PRESETS, Spectrum, band_sums, spectrum
from cleantune.pipeline.export import load_models
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import write_table, write_text
from cleantune.training.heads import head_width
from cleantune.training.models import Model
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 8192
SPLITS = ("all", "train", "validation", "test")


@dataclass(frozen=True, eq=False)
class SpectrumResult:
    """The spectrum of one model's features of one data set."""

    data: str
    model: str
    spectrum: Spectrum


@dataclass(frozen=True, eq=False)
class Study:
    """Spectra with their tables, and where the page is."""

    found: tuple[SpectrumResult, ...]
    report: Path

    @property
    def table(self) -> pd.DataFrame:
        """One row a data set and model."""
        import pandas as pd

        return pd.DataFrame([_row(f) for f in self.found])


def study(
    data: Sequence[Any], models: Sequence[Any] = (), *, out: str | Path, runs: Sequence[str | Path] = (),
    split: str = "all", preset: str = "official", console: Console | None = None, **options: Any,
) -> Study:  # fmt: skip
    """Measure the features of models, and what the heads of runs make of features, on data sets.

    Args:
        data: Data sets in any form that `fit` takes; embeddings need no model.
        models: Checkpoint folders or hub ids.
        out: Folder of spectrum.parquet (the table), singular_values.parquet and spectrum.html.
        runs: Folders of finished runs, of which the reshaped features Z are measured.
        split: `all` rows, or one split's; the paper's figures have the test split.
        preset: `official` or `paper` of `spectrum.PRESETS`.
        console: Told how far it is.
        **options: Fields of the data and the model, as of `fit`.

    Raises:
        UserError: In one sentence, for whatever is missing or does not fit.
    """
    from cleantune.studies.spectrum_page import build

    if preset not in PRESETS or split not in SPLITS:
        known, said = (PRESETS, preset) if preset not in PRESETS else (SPLITS, split)
        raise UserError(f'"{said}" is none of {", ".join(known)}')
    console, folder = console or Console(), Path(out)
    found: list[SpectrumResult] = []
    for one in data:
        opened = read(one, split, options)
        name = _named(one)
        unwrap_head = opened[1].kind == "features"
        for model in [None] if unwrap_head else models:
            console.info(f"{name}: {'features as given' if model is None else _named(model)}")
            x = features(opened, model, options, console)
            found.append(
                SpectrumResult(name, "features" if model is None else _named(model), spectrum(x, **PRESETS[preset]))
            )
        for run in runs:
            console.info(f"{name}: what {run} makes of it")
            found.append(
                SpectrumResult(name, _named(run), spectrum(reshaped(opened, Path(run), console), **PRESETS[preset]))
            )
    if not found:
        raise UserError("there is nothing to measure: name a --model or a --run")
    folder.mkdir(parents=True, exist_ok=True)
    done = Study(tuple(found), folder / "spectrum.html")
    write_table(folder / "spectrum.parquet", lambda path: done.table.to_parquet(path, index=False))
    write_table(folder / "singular_values.parquet", lambda path: _values(found).to_parquet(path, index=False))
    write_text(done.report, build(done.found, preset, split))
    return done


def read(data: Any, split: str, options: dict[str, Any]) -> tuple[Config, Data]:
    """The data of a split, under the name of the training split, which is what extraction begins with."""
    from cleantune.pipeline.arguments import FitArguments

    config = configure(FitArguments(data=data, method="ce", options=options).to_table())
    loaded = load(config.data, config.run.cache)
    if split == "all":
        return config, loaded
    if split not in loaded.rows:
        raise UserError(f"{_named(data)} has no {split} split, only {', '.join(loaded.rows)}; choose another --split")
    return config, replace(loaded, rows={"train": loaded.rows[split]}, truth={})


def features(opened: tuple[Config, Data], model: Any, options: dict[str, Any], console: Console) -> Any:
    """Features [M, D] of all rows."""
    config, data = opened
    spec = replace(config.model, model=model)
    backbone = open_model(spec, data.kind == "features")
    material = prepare_inputs(replace(config, model=spec), data, backbone, console)
    return _joined([material.features[name] for name in material.data.rows])


def reshaped(opened: tuple[Config, Data], run: Path, console: Console) -> Any:
    """What the classifier of a run sees of all rows [M, Z]; of several nets the first one's."""
    config, data = opened
    net: Model = load_models(run / "model" if (run / "model").is_dir() else run)[0][0]
    material = prepare_inputs(config, data, copy.deepcopy(net.backbone), console)
    x = _joined([material.features[name] for name in material.data.rows])
    width = head_width(net.head)
    if x.shape[1] != width:
        raise UserError(f"the features have {x.shape[1]} numbers a sample, the model in {run} takes {width}")
    head = net.head.cpu().eval()
    with torch.no_grad():
        blocks = [torch.from_numpy(np.asarray(x[i : i + BLOCK], np.float32)) for i in range(0, len(x), BLOCK)]
        return torch.cat([head(block).embedding for block in blocks])


def _joined(parts: list[Any]) -> Any:
    """Several parts one below the other; mapped ones stay on disk."""
    if len(parts) == 1:
        return parts[0]
    if not all(isinstance(part, Features) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return Features(parts, np.arange(sum(map(len, parts))), {})  # each part reads its own rows


def _named(thing: Any) -> str:
    if isinstance(thing, str | Path):
        path = Path(thing)
        return path.stem if path.is_file() else path.name or str(thing)
    return type(thing).__name__


def _row(found: SpectrumResult) -> dict[str, Any]:
    s = found.spectrum
    row = {"data": found.data, "model": found.model, "samples": s.samples, "width": s.width, "sve": s.sve}
    row |= {"lsvr": s.lsvr, "dominant_share": s.dominant_share, "effective_rank": s.effective_rank}
    row |= {f"ranks {band}": share for band, share in band_sums(s.values).items()}
    return row | {"normalize": s.normalize, "center": s.center}


def _values(found: Sequence[SpectrumResult]) -> pd.DataFrame:
    import pandas as pd

    parts = [
        pd.DataFrame({"data": f.data, "model": f.model, "rank": np.arange(len(f.spectrum.values)),
                      "singular_value": f.spectrum.values})
        for f in found
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)
