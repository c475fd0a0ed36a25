"""Measure the spectra of features over models and data sets: a table, all singular values, and a page."""

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
from cleantune.functional.spectrum import PRESETS, SpectrumResult, band_sums, spectrum
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.export import load_models
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import write_table, write_text
from cleantune.studies.spectrum_page import build
from cleantune.training.heads import head_width
from cleantune.training.models import Model
from cleantune.utils.console import Console

if TYPE_CHECKING:
    import pandas as pd

BLOCK_ROWS = 8192
"""Rows that are passed through a head at a time."""
SPLITS = ("all", "train", "validation", "test")


@dataclass(frozen=True, eq=False)
class SpectrumStudy:
    """Spectra of several models and data sets."""

    results: tuple[SpectrumResult, ...]
    report: Path
    """Path of spectrum.html."""

    @property
    def table(self) -> pd.DataFrame:
        """The measures, one row per data set and model."""
        import pandas as pd

        return pd.DataFrame([_row(result) for result in self.results])


def measure_spectra(
    data: Sequence[Any], models: Sequence[Any] = (), *, out: str | Path, runs: Sequence[str | Path] = (),
    split: str = "all", preset: str = "official", console: Console | None = None, **options: Any,
) -> SpectrumStudy:  # fmt: skip
    """Measure the spectra of features of models, and of the embeddings by the heads of runs, on data sets.

    Args:
        data: Data sets in any form that `fit` takes; embeddings need no model.
        models: Checkpoint folders or hub ids.
        out: Folder of spectrum.parquet (the table), singular_values.parquet and spectrum.html.
        runs: Folders of finished runs, of which the embeddings Z are measured.
        split: `all` rows, or one split; the figures of arXiv:2309.17002 use the test split.
        preset: `official` or `paper` of `functional.spectrum.PRESETS`.
        console: Where progress is shown.
        **options: Fields of the data and the model by name, as of `fit`.

    Raises:
        UserError: Data, model or run are missing or do not fit.
    """
    for value, allowed in ((preset, PRESETS), (split, SPLITS)):
        if value not in allowed:
            raise UserError(f'"{value}" is none of {", ".join(allowed)}')
    console, folder = console or Console(), Path(out)
    results: list[SpectrumResult] = []
    for source in data:
        config, loaded = load_split(source, split, options)
        name = _name(source)
        for model in [None] if loaded.kind == "features" else models:
            title = "features" if model is None else _name(model)
            console.info(f"{name}: {title}")
            x = features(config, loaded, model, console)
            results.append(SpectrumResult(name, title, spectrum(x, **PRESETS[preset])))
        for run in runs:
            console.info(f"{name}: embeddings of {run}")
            z = head_embeddings(config, loaded, Path(run), console)
            results.append(SpectrumResult(name, _name(run), spectrum(z, **PRESETS[preset])))
    if not results:
        raise UserError("there is nothing to measure: name a --model or a --run")
    folder.mkdir(parents=True, exist_ok=True)
    study = SpectrumStudy(tuple(results), folder / "spectrum.html")
    write_table(folder / "spectrum.parquet", lambda path: study.table.to_parquet(path, index=False))
    write_table(folder / "singular_values.parquet", lambda path: _values(results).to_parquet(path, index=False))
    write_text(study.report, build(study.results, preset, split))
    return study


def load_split(data: Any, split: str, options: dict[str, Any]) -> tuple[Config, Data]:
    """Load the data of a split under the name of the training split, which `prepare_inputs` expects.

    Raises:
        UserError: There is no such split.
    """
    config = configure(FitArguments(data=data, method="ce", options=options).to_table())
    loaded = load(config.data, config.run.cache)
    if split == "all":
        return config, loaded
    if split not in loaded.rows:
        raise UserError(f"{_name(data)} has no {split} split, only {', '.join(loaded.rows)}; choose another --split")
    return config, replace(loaded, rows={"train": loaded.rows[split]}, truth={})


def features(config: Config, data: Data, model: Any, console: Console) -> Any:
    """Return the features [M, D] of all rows."""
    model_config = replace(config.model, model=model)
    backbone = open_model(model_config, data.kind == "features")
    inputs = prepare_inputs(replace(config, model=model_config), data, backbone, console)
    return _concatenate([inputs.features[name] for name in inputs.data.rows])


def head_embeddings(config: Config, data: Data, run: Path, console: Console) -> Any:
    """Return the inputs of a run's classifier for all rows [M, Z]; of several models the first one's.

    Raises:
        UserError: The features do not fit the model.
    """
    net: Model = load_models(run / "model" if (run / "model").is_dir() else run)[0][0]
    inputs = prepare_inputs(config, data, copy.deepcopy(net.backbone), console)
    x = _concatenate([inputs.features[name] for name in inputs.data.rows])
    width = head_width(net.head)
    if x.shape[1] != width:
        raise UserError(f"the features have {x.shape[1]} dimensions, the model in {run} takes {width}")
    head = net.head.cpu().eval()
    with torch.no_grad():
        starts = range(0, len(x), BLOCK_ROWS)
        blocks = [torch.from_numpy(np.asarray(x[start : start + BLOCK_ROWS], np.float32)) for start in starts]
        return torch.cat([head(block).embedding for block in blocks])


def _concatenate(parts: list[Any]) -> Any:
    """Return several arrays as one; memory-mapped ones stay on disk."""
    if len(parts) == 1:
        return parts[0]
    if not all(isinstance(part, Features) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return Features(parts, np.arange(sum(map(len, parts))), {})  # each part reads its own rows


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        path = Path(source)
        return path.stem if path.is_file() else path.name or str(source)
    return type(source).__name__


def _row(result: SpectrumResult) -> dict[str, Any]:
    s = result.spectrum
    row = {"data": result.data, "model": result.model, "samples": s.samples, "width": s.width, "sve": s.sve}
    row |= {"lsvr": s.lsvr, "dominant_share": s.dominant_share, "effective_rank": s.effective_rank}
    row |= {f"ranks {band}": share for band, share in band_sums(s.values).items()}
    return row | {"normalize": s.normalize, "center": s.center}


def _values(results: Sequence[SpectrumResult]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for result in results:
        values = result.spectrum.values
        columns = {"data": result.data, "model": result.model, "rank": np.arange(len(values)), "singular_value": values}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
