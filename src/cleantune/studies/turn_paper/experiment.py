"""An experiment of the paper as a file: data, models, noises, methods and variants, and the cells that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from cleantune.config.run import configure, load_toml
from cleantune.config.schema import from_dict, merge
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods.protocol import Range
from cleantune.noise import format_noise, parse_noise
from cleantune.studies.turn_paper.downloads import LOADERS
from cleantune.studies.turn_paper.numbers import KEYS

BLOCKS = ("table2", "table3", "table4", "table5", "table9", "figure2", "figure3")
"""Tables and figures that can be reproduced."""


@dataclass(frozen=True)
class Source:
    """One data set."""

    name: str
    """As the paper's tables call it."""
    loader: str
    """How the public download is read: cifar100, clothing1m or webvision."""
    path: str
    """Folder of the download, or hf:NAME; `--data LOADER=PATH` overrides it."""
    subset: Annotated[int, Range(0, 10_000_000)] = 0
    """Training images of one fixed draw, even over the given classes; 0: all. Clothing1M's alone."""
    validation_fraction: Annotated[float, Range(0.0, 0.9)] = 0.05
    """Share of training held out as validation, where the download has none."""
    methods: Any = None
    """Settings by method where these data ask for others, as methods.elr.beta; `preset` may be among them."""


@dataclass(frozen=True)
class Pretrained:
    """One pre-trained model."""

    name: str
    """As the paper's tables call it."""
    model: str
    """Hub id or folder of transformers; `--model NAME=PATH` overrides it."""
    architecture: str
    """Row of Table 8, and what the stand-in builds."""


@dataclass(frozen=True)
class Variant:
    """A method with settings of its own."""

    name: str
    """As the tables call it."""
    method: str
    """Method, or METHOD/SCOPE."""
    settings: Any = None
    """Fields of the method that differ from the preset."""
    cleanse: bool = True
    """TURN alone; false: fine-tune on every sample."""
    group: str = ""
    """Variants of one group are drawn as one line over `x`."""
    x: Annotated[float, Range(-1e9, 1e9)] = 0.0
    """Place on the x axis."""


@dataclass(frozen=True)
class Cell:
    """One run: what it is called, and its configuration without data and model."""

    data: str
    model: str
    noise: str
    variant: str
    method: str
    scope: str
    seed: int
    cleanse: bool = field(compare=False)
    """Whether TURN cleanses."""
    settings: Mapping[str, Any] = field(compare=False)
    """The tables method and run of a configuration, and what else the file fixes."""

    @property
    def key(self) -> tuple[str, ...]:
        """The values of `numbers.KEYS`."""
        return tuple(getattr(self, name) for name in KEYS)


@dataclass(frozen=True)
class Experiment:
    """A block of the paper."""

    block: str
    """Name of the block whose numbers stand beside ours."""
    title: str
    """For headings."""
    noises: tuple[str, ...]
    """As `--noise` spells them; none: labels as they are."""
    data: tuple[Source, ...]
    models: tuple[Pretrained, ...]
    methods: tuple[str, ...] = ()
    """METHOD/SCOPE, or a METHOD in its own scope."""
    variants: tuple[Variant, ...] = ()
    preset: str = "paper"
    """Named settings of every method."""
    seeds: tuple[int, ...] = (0,)
    """One run a seed."""
    analysis: Literal["none", "features"] = "none"
    """features: look at test features before and after."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a run's config.toml that hold for every cell."""

    def cells(self) -> list[Cell]:
        """Every run, in the order of the file: data, model, noise, then methods and variants, seeds last.

        Raises:
            UserError: A method, setting or noise is not known; the sentence names it.
        """
        out = []
        asked = [*(Variant("", name) for name in self.methods), *self.variants]
        for source in self.data:
            for model in self.models:
                for noise in self.noises:
                    out += [self._cell(source, model, noise, one, seed) for one in asked for seed in self.seeds]
        return out

    def _cell(self, source: Source, model: Pretrained, noise: str, asked: Variant, seed: int) -> Cell:
        name, _, scope = asked.method.partition("/")
        own = merge(dict((source.methods or {}).get(name, {})), asked.settings or {})
        table = {"name": name, "preset": self.preset} | ({"scope": scope} if scope else {}) | own
        run = {"noise_seed": seed, "train_seed": seed} | ({"noise": noise} if noise != "none" else {})
        settings = merge(dict(self.fit), {"method": table, "run": run})
        known = configure(merge(settings, {"data": {"data": ""}}), model.architecture)
        return Cell(source.name, model.name, noise, asked.name, name, known.method.scope, seed, asked.cleanse, settings)


PARTS: dict[str, type] = {"data": Source, "model": Pretrained, "variant": Variant}
"""Arrays of tables of a file."""
PLAIN = ("block", "title", "noises", "methods", "preset", "seeds", "analysis", "fit")


def read(path: Path | str) -> Experiment:
    """The experiment of a TOML file, or of a block's name.

    Raises:
        UserError: There is none, it is not TOML, or a key or value is not known; the sentence names file and key.
    """
    source = files(__package__).joinpath("experiments", f"{path}.toml") if str(path) in BLOCKS else Path(path)
    table = load_toml(source, f'there is no block or file "{path}"{did_you_mean(str(path), BLOCKS)}')
    try:
        return experiment(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def experiment(table: Mapping[str, Any]) -> Experiment:
    """The experiment that a table spells; every cell is configured once, so that no key goes unread.

    Raises:
        UserError: A key or value is not known.
    """
    refuse_unknown_keys(table, [*PLAIN, *PARTS])
    parts: dict[str, Any] = {
        name: tuple(from_dict(record, entry, f"{name}[{k}]") for k, entry in enumerate(table.get(name, [])))
        for name, record in PARTS.items()
    }
    missing = next((k for k in ("block", "title", "noises", "data", "model") if not table.get(k)), None)
    if missing:
        raise UserError(f'key "{missing}" is missing')
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in PLAIN}
    plain["noises"] = tuple(format_noise(parse_noise(noise)) for noise in plain["noises"])
    out = Experiment(data=parts["data"], models=parts["model"], variants=parts["variant"], **plain)
    _check(out)
    return out


def _check(made: Experiment) -> None:
    for source in made.data:
        if source.loader not in LOADERS:
            raise UserError(
                f'data "{source.name}": unknown loader "{source.loader}"{did_you_mean(source.loader, LOADERS)}'
            )
    if made.block not in BLOCKS:
        raise UserError(f'unknown block "{made.block}"{did_you_mean(made.block, BLOCKS)}')
    if made.analysis not in ("none", "features"):
        raise UserError(f'key "analysis" is "{made.analysis}"{did_you_mean(made.analysis, ("none", "features"))}')
    names = [(*cell.key, str(cell.seed)) for cell in made.cells()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two cells are the same: {', '.join(part for part in twice if part)}; name a variant each")


def select(cells: Iterable[Cell], chosen: Iterable[str]) -> list[Cell]:
    """The cells that have every KEY=VALUE; values of one key add up.

    Raises:
        UserError: A key or value is not known, or no cell is left.
    """
    cells, wanted = list(cells), dict[str, set[str]]()
    for text in chosen:
        key, sign, value = text.partition("=")
        if not sign or key not in KEYS:
            raise UserError(f'--only "{text}": write KEY=VALUE{did_you_mean(key, KEYS)}')
        there = {getattr(cell, key) for cell in cells}
        if value not in there:
            raise UserError(f'--only "{text}": no cell has it{did_you_mean(value, there)}')
        wanted.setdefault(key, set()).add(value)
    left = [cell for cell in cells if all(getattr(cell, key) in values for key, values in wanted.items())]
    if not left:
        raise UserError(f"--only {' '.join(chosen)}: no cell has all of it")
    return left
