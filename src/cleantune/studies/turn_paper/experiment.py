"""Read an experiment of the paper from a file: data, models, noises, methods, variants, and the cells they form."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from cleantune.config.run import configure
from cleantune.config.schema import merge
from cleantune.errors import UserError, did_you_mean
from cleantune.methods.protocol import Range
from cleantune.studies.grid import folder_name
from cleantune.studies.study_file import parse_fields, read_study, refuse_unknown_names
from cleantune.studies.turn_paper.downloads import LOADERS
from cleantune.studies.turn_paper.numbers import KEYS

BLOCKS = ("table2", "table3", "table4", "table5", "table9", "figure2", "figure3")
"""Tables and figures that can be reproduced."""


@dataclass(frozen=True)
class Source:
    """A data set."""

    name: str
    """Name in the paper's tables."""
    loader: str
    """Reader of the public download: cifar100, clothing1m or webvision."""
    path: str
    """Folder of the download, or hf:NAME; `--data LOADER=PATH` overrides it."""
    subset: Annotated[int, Range(0, 10_000_000)] = 0
    """Training images of one fixed draw, balanced over the given classes; 0: all. For Clothing1M alone."""
    validation_fraction: Annotated[float, Range(0.0, 0.9)] = 0.05
    """Fraction of the training images held out for validation if the download has no validation split."""
    methods: Any = None
    """Settings by method for these data, such as methods.elr.elr_beta; `preset` may be among them."""


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model."""

    name: str
    """Name in the paper's tables."""
    model: str
    """Hub id or folder of transformers; `--model NAME=PATH` overrides it."""
    architecture: str
    """Row of Table 8, and architecture of the synthetic network."""


@dataclass(frozen=True)
class Variant:
    """A method with its own settings."""

    name: str
    """Name in the tables."""
    method: str
    """METHOD or METHOD/SCOPE."""
    settings: Any = None
    """Fields of the method that differ from the preset."""
    select_samples: bool = True
    """For TURN alone; false: fine-tune on all samples."""
    group: str = ""
    """Group of variants that are plotted as one line over `x`."""
    x: Annotated[float, Range(-1e9, 1e9)] = 0.0
    """Position on the x axis."""


@dataclass(frozen=True)
class Cell:
    """One run: its names, and its configuration without data and model."""

    data: str
    model: str
    noise: str
    variant: str
    method: str
    scope: str
    seed: int
    select_samples: bool = field(compare=False)
    settings: Mapping[str, Any] = field(compare=False)
    """The tables method and run of a config, and the other settings of the file."""

    @property
    def key(self) -> tuple[str, ...]:
        """Values of `numbers.KEYS`."""
        return tuple(getattr(self, name) for name in KEYS)

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        parts = [*(part for part in self.key if part), f"seed{self.seed}"]
        return folder_name(parts, repr((self.key, self.seed)))

    @property
    def title(self) -> str:
        """Name of the cell in progress lines."""
        return f"{', '.join(part for part in self.key if part)}, seed {self.seed}"

    @property
    def kind(self) -> Hashable:
        """Data, model, method and variant, which decide the duration."""
        return self.data, self.model, self.method, self.scope, self.variant


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    block: str
    """Name of the block with the paper's numbers."""
    title: str
    """Heading."""
    noises: tuple[str, ...]
    """Noises in the form of `--noise`; none: labels as they are."""
    data: tuple[Source, ...]
    models: tuple[Pretrained, ...]
    methods: tuple[str, ...] = ()
    """METHOD/SCOPE, or METHOD in its own scope."""
    variants: tuple[Variant, ...] = ()
    preset: str = "paper"
    """Preset of every method."""
    seeds: tuple[int, ...] = (0,)
    analysis: Literal["none", "features"] = "none"
    """features: compare test features before and after training."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a run's config.toml for all cells."""

    def cells(self) -> list[Cell]:
        """Return all runs in the order of the file; neighbors share data, model and noise.

        Raises:
            UserError: A method, setting or noise is unknown; the message names it.
        """
        variants = [*(Variant("", name) for name in self.methods), *self.variants]
        axes = itertools.product(self.data, self.models, self.noises, self.seeds, variants)
        return [self._cell(source, model, noise, seed, variant) for source, model, noise, seed, variant in axes]

    def _cell(self, source: Source, model: Pretrained, noise: str, seed: int, variant: Variant) -> Cell:
        name, _, scope = variant.method.partition("/")
        overrides = merge(dict((source.methods or {}).get(name, {})), variant.settings or {})
        table = {"name": name, "preset": self.preset} | ({"scope": scope} if scope else {}) | overrides
        run = {"noise_seed": seed, "train_seed": seed} | ({"noise": noise} if noise != "none" else {})
        settings = merge(dict(self.fit), {"method": table, "run": run})
        scope = configure(merge(settings, {"data": {"data": ""}}), model.architecture).method.scope
        select_samples = variant.select_samples
        return Cell(source.name, model.name, noise, variant.name, name, scope, seed, select_samples, settings)


RECORDS: dict[str, tuple[str, type]] = {
    "data": ("data", Source), "model": ("models", Pretrained), "variant": ("variants", Variant),
}  # fmt: skip
"""Arrays of tables in a file: field of the experiment, and record."""
VALUES = ("block", "title", "noises", "methods", "preset", "seeds", "analysis", "fit")


def read(path: Path | str) -> Experiment:
    """Return the experiment of a TOML file or of a block's name.

    Raises:
        UserError: It is missing, not TOML, or has an unknown key or value; the message names file and key.
    """
    source = files(__package__).joinpath("experiments", f"{path}.toml") if str(path) in BLOCKS else Path(path)
    missing = f'there is no block or file "{path}"{did_you_mean(str(path), BLOCKS)}'
    return read_study(source, missing, experiment_from_dict)


def experiment_from_dict(table: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a table; every cell is configured once, so that no key is ignored.

    Raises:
        UserError: A key or value is unknown.
    """
    experiment = Experiment(**parse_fields(table, VALUES, RECORDS, ("block", "title", "noises", "data", "model")))
    _check(experiment)
    return experiment


def relocate(experiment: Experiment, data: Mapping[str, str], models: Mapping[str, str]) -> Experiment:
    """Return the experiment with other paths of data, by loader, and of models, by name.

    Raises:
        UserError: The experiment has no such loader or model.
    """
    refuse_unknown_names("--data", data, [source.loader for source in experiment.data])
    refuse_unknown_names("--model", models, [model.name for model in experiment.models])
    return replace(
        experiment,
        data=tuple(replace(source, path=data.get(source.loader, source.path)) for source in experiment.data),
        models=tuple(replace(model, model=models.get(model.name, model.model)) for model in experiment.models),
    )


def _check(experiment: Experiment) -> None:
    for source in experiment.data:
        if source.loader not in LOADERS:
            name = f'data "{source.name}": unknown loader "{source.loader}"'
            raise UserError(f"{name}{did_you_mean(source.loader, LOADERS)}")
    if experiment.block not in BLOCKS:
        raise UserError(f'unknown block "{experiment.block}"{did_you_mean(experiment.block, BLOCKS)}')
    if experiment.analysis not in ("none", "features"):
        raise UserError(f'key "analysis" is "{experiment.analysis}"; it must be none or features')
    names = [(*cell.key, str(cell.seed)) for cell in experiment.cells()]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:
        raise UserError(f"two cells are the same: {', '.join(part for part in duplicate if part)}; name the variants")


def select(cells: Iterable[Cell], chosen: Iterable[str]) -> list[Cell]:
    """Return the cells that match every key; several values of one key are alternatives.

    Args:
        cells: All cells.
        chosen: Filters of the form KEY=VALUE.

    Raises:
        UserError: A key or value is unknown, or no cell matches.
    """
    cells, wanted = list(cells), dict[str, set[str]]()
    for text in chosen:
        key, sign, value = text.partition("=")
        if not sign or key not in KEYS:
            raise UserError(f'--only "{text}": write KEY=VALUE{did_you_mean(key, KEYS)}')
        values = {getattr(cell, key) for cell in cells}
        if value not in values:
            raise UserError(f'--only "{text}": no cell has it{did_you_mean(value, values)}')
        wanted.setdefault(key, set()).add(value)
    matches = [cell for cell in cells if all(getattr(cell, key) in options for key, options in wanted.items())]
    if not matches:
        raise UserError(f"--only {' '.join(chosen)}: no cell matches all of them")
    return matches
