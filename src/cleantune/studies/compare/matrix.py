"""What a matrix consists of: entries, noises, models, seeds, and the cells that they make."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from cleantune.config.run import Config, config_to_dict, configure
from cleantune.config.schema import merge
from cleantune.methods.protocol import Scope

OURS = {
    "model.model": "matrix.models", "run.noise": "matrix.noises",
    "run.noise_seed": "matrix.seeds", "run.train_seed": "matrix.seeds",
}  # fmt: skip
"""Settings of a run that a matrix sets, and what sets them."""
SCOPES: tuple[Scope, ...] = ("head", "all")
RATES = (1.0, 1 / 3, 3.0)
"""With `tune`: the multiples of an entry's own learning rates that it may choose from."""
TUNINGS = {"head": "LP", "all": "FFT", "both": "LP-FFT"}
"""How the paper's tables call what learns."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method with its scope and settings."""

    name: str
    method: str
    scope: Scope
    preset: str | None
    settings: dict[str, Any] = field(compare=False)
    tuning: str
    """LP, FFT or LP-FFT."""

    @property
    def table(self) -> dict[str, Any]:
        """The sub-table `method` of a run's config."""
        named = {"name": self.method, "scope": self.scope} | ({"preset": self.preset} if self.preset else {})
        return self.settings | named


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    entry: Entry
    noise: str
    model: int
    """Number of the model."""
    seed: int
    rate: float = 1.0
    """Multiple of the entry's learning rates."""


@dataclass(frozen=True)
class Matrix:
    """A whole experiment, resolved: every name is known and every value in its range."""

    entries: tuple[Entry, ...]
    noises: tuple[str, ...]
    models: tuple[Any, ...]
    """As given; a single None where the data are features."""
    seeds: tuple[int, ...]
    tune: bool
    common: dict[str, Any]
    """The sub-tables data, model, run and views that all cells share."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name of every model, each different."""
        short = [model_name(m) for m in self.models]
        return tuple(name if short.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(short, start=1))

    def cells(self) -> list[Cell]:
        """Every cell with its own rates, in the order in which they run: what shares data and labels is neighbors."""
        return [
            Cell(entry, noise, m, seed)
            for m in range(len(self.models))
            for noise in self.noises
            for seed in self.seeds
            for entry in self.entries
        ]

    def folder(self, cell: Cell) -> str:
        """The name of a cell's folder, readable and without two alike."""
        parts = [cell.entry.name, cell.entry.scope, cell.noise, self.labels[cell.model], str(cell.seed)]
        words = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.")[:40] for part in parts)
        mark = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:6]
        return f"{words}_{mark}" + ("" if cell.rate == 1 else f"_rate-x{cell.rate:.3g}")

    def run_table(self, cell: Cell) -> dict[str, Any]:
        """The table of a cell's run, as `fit` would take it; rates as the entry has them."""
        own = {
            "method": cell.entry.table,
            "run": {"noise": cell.noise, "noise_seed": cell.seed, "train_seed": cell.seed},
        }
        model = self.models[cell.model]
        return merge(self.common, own | ({} if model is None else {"model": {"model": model}}))

    def config(self, cell: Cell, backbone: str | None, features_only: bool) -> Config:
        """The resolved configuration of a cell."""
        return configure(self.run_table(cell), backbone, features_only)


def model_name(model: Any) -> str:
    """The last part of a path or hub id; other models by what they are called."""
    if model is None:
        return "features"
    if isinstance(model, str | PurePath):
        return PurePath(str(model).rstrip("/")).name or str(model)
    return str(getattr(model, "source", type(model).__name__))


def resolved_table(matrix: Matrix) -> dict[str, Any]:
    """The table that `resolve` reads back to the same matrix, every shared default stated and paths absolute."""
    shared = config_to_dict(matrix.config(Cell(matrix.entries[0], matrix.noises[0], 0, 0), None, False))
    tables = {part: dict(shared[part]) for part in ("data", "model", "run", "augmentation")}
    for path in OURS:
        part, key = path.split(".")
        tables[part].pop(key, None)
    models = [
        config_to_dict(matrix.config(Cell(matrix.entries[0], matrix.noises[0], m, 0), None, False))["model"].get(
            "model"
        )
        for m in range(len(matrix.models))
    ]
    entries = [
        {"name": e.name, "method": e.method, "scope": e.scope}
        | ({"preset": e.preset} if e.preset else {})
        | ({"settings": e.settings} if e.settings else {})
        for e in matrix.entries
    ]
    axes = {
        "noises": list(matrix.noises), "models": [m for m in models if m is not None], "seeds": list(matrix.seeds),
        "tune": matrix.tune, "entries": entries,
    }  # fmt: skip
    return {"matrix": axes} | tables
