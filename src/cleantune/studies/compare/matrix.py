"""Describe an experiment matrix: entries, noises, models and seeds, and the cells that they form."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from cleantune.config.run import Config, config_to_dict, configure
from cleantune.config.schema import merge
from cleantune.methods.protocol import Scope, Stage
from cleantune.studies.grid import folder_name
from cleantune.training.optim import backbone_learning_rate_at

MATRIX_KEYS = {
    "model.model": "matrix.models", "run.noise": "matrix.noises",
    "run.noise_seed": "matrix.seeds", "run.train_seed": "matrix.seeds",
}  # fmt: skip
"""Settings of a run that the matrix sets, and the key that sets them."""
SCOPES: tuple[Scope, ...] = ("head", "all")
LEARNING_RATE_FACTORS = (1.0, 1 / 3, 3.0)
"""With `tune`: the multiples of an entry's own learning rates that are tried."""
TUNINGS = {"head": "LP", "all": "FFT", "both": "LP-FFT"}
"""Names of the scopes in the tables of arXiv:2310.17668."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method with its scope and settings."""

    name: str
    method: str
    scope: Scope
    preset: str | None
    settings: dict[str, Any] = field(compare=False)
    tuning: str
    """LP (linear probing), FFT (full fine-tuning) or LP-FFT."""

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
    """Index of the model."""
    model_name: str
    seed: int
    factor: float = 1.0
    """Multiple of the entry's learning rates."""

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        parts = [self.entry.name, self.entry.scope, self.noise, self.model_name, str(self.seed)]
        suffix = "" if self.factor == 1 else f"_lr-x{self.factor:.3g}"
        return folder_name(parts, "\n".join(parts)) + suffix

    @property
    def title(self) -> str:
        """Name of the cell in progress lines."""
        factor = f", learning rate x {self.factor:.3g}" if self.factor != 1 else ""
        return f"{self.entry.name} {self.entry.tuning}, {self.noise}, {self.model_name}, seed {self.seed}{factor}"

    @property
    def kind(self) -> Hashable:
        """Entry and model, which decide the duration."""
        return self.entry, self.model


@dataclass(frozen=True)
class Matrix:
    """An experiment with every name resolved and every value in its range."""

    entries: tuple[Entry, ...]
    noises: tuple[str, ...]
    models: tuple[Any, ...]
    """As given; a single None if the data are features."""
    seeds: tuple[int, ...]
    tune: bool
    common: dict[str, Any]
    """The sub-tables data, model, run and augmentation that all cells share."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """A short name of every model, each different."""
        short = [model_name(m) for m in self.models]
        return tuple(name if short.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(short, start=1))

    def cells(self) -> list[Cell]:
        """Return all cells but those that try learning rates; cells that share data and labels are neighbors."""
        return [
            self.cell(entry, noise, m, seed)
            for m in range(len(self.models))
            for noise in self.noises
            for seed in self.seeds
            for entry in self.entries
        ]

    def cell(
        self, entry: Entry | None = None, noise: str | None = None, model: int = 0, seed: int | None = None
    ) -> Cell:
        """Return a cell; what is left out is the first of its axis."""
        return Cell(
            entry or self.entries[0],
            noise or self.noises[0],
            model,
            self.model_names[model],
            self.seeds[0] if seed is None else seed,
        )

    def run_table(self, cell: Cell) -> dict[str, Any]:
        """Return the table of a cell's run as `fit` would take it, with the entry's own learning rates."""
        table: dict[str, Any] = {
            "method": cell.entry.table,
            "run": {"noise": cell.noise, "noise_seed": cell.seed, "train_seed": cell.seed},
        }
        model = self.models[cell.model]
        return merge(self.common, table | ({} if model is None else {"model": {"model": model}}))

    def config(self, cell: Cell, backbone: str | None, features_only: bool) -> Config:
        """Return the resolved configuration of a cell, with the entry's own learning rates."""
        return configure(self.run_table(cell), backbone, features_only)


def model_name(model: Any) -> str:
    """Return the last part of a path or hub id; of other models their source or type."""
    if model is None:
        return "features"
    if isinstance(model, str | PurePath):
        return PurePath(str(model).rstrip("/")).name or str(model)
    return str(getattr(model, "source", type(model).__name__))


def matrix_to_dict(matrix: Matrix) -> dict[str, Any]:
    """Return the table that `resolve` reads back to the same matrix, with all defaults and absolute paths."""
    shared = config_to_dict(matrix.config(matrix.cell(), None, False))
    tables = {part: dict(shared[part]) for part in ("data", "model", "run", "augmentation")}
    for path in MATRIX_KEYS:
        part, key = path.split(".")
        tables[part].pop(key, None)
    models = [
        config_to_dict(matrix.config(matrix.cell(model=m), None, False))["model"].get("model")
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


def scale_learning_rates(config: Config, factor: float, recommended: float) -> Config:
    """Return the configuration with the learning rates of its scope's stages multiplied.

    Args:
        config: Configuration of a cell.
        factor: The multiple; 1 changes nothing.
        recommended: Learning rate of the backbone for stages that name none, at `optim.REFERENCE_BATCH_SIZE`.
    """
    if factor == 1:
        return config
    method: Any = config.method
    phases = {phase.name for phase in method.phases() if phase.scope == method.scope}
    changes = {}
    for f in fields(method):
        stage = getattr(method, f.name)
        if isinstance(stage, Stage) and f.name in phases:
            rates = {"learning_rate": stage.learning_rate * factor}
            if method.scope == "all":
                rates["backbone_learning_rate"] = backbone_learning_rate_at(stage, recommended) * factor
            changes[f.name] = replace(stage, **rates)  # type: ignore[arg-type]
    return replace(config, method=replace(method, **changes))
