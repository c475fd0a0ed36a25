"""What a search varies: read from the fields of a method and its stages, from a file, or Table 7 of TURN's paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.config.run import read_config
from cleantune.config.schema import FieldInfo, describe_fields
from cleantune.errors import UserError, did_you_mean
from cleantune.methods.protocol import Categorical, Method, Phase, Range, Stage

DIGITS = 3
"""Significant digits of a drawn number."""
PAPER = {
    "learning_rate": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    "optimizer": ("sgd", "adamw"),
    "weight_decay": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "batch_size": (32, 64, 128),
}
"""Table 7 of arXiv:2310.17668; the learning rate is that of head and backbone alike."""


@dataclass(frozen=True)
class Dimension:
    """One hyper-parameter and the values that it may take."""

    key: str
    """Its path, such as `method.probe.learning_rate`."""
    range: Range | Categorical
    whole: bool = False
    """Whether it is a whole number."""
    also: tuple[str, ...] = ()
    """Paths that take the same value."""

    @property
    def name(self) -> str:
        """The path without `method.`."""
        return self.key.removeprefix("method.")

    @property
    def log(self) -> bool:
        """Whether its values are spread on a logarithmic scale."""
        if isinstance(self.range, Range):
            return self.range.log
        numbers = [v for v in self.range.values if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) == len(self.range.values) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)

    def at(self, share: float) -> Any:
        """The value at a share 0..1 of the range."""
        if isinstance(self.range, Categorical):
            return self.range.values[min(int(share * len(self.range.values)), len(self.range.values) - 1)]
        low, high = self.range.low, self.range.high
        value = low * (high / low) ** share if self.range.log else low + (high - low) * share
        value = float(f"{value:.{DIGITS}g}")
        value = min(max(value, low), high)
        return round(value) if self.whole else value


def space_of(method: Method, phases: Sequence[Phase], chosen: str | Mapping[str, Any] | None) -> list[Dimension]:
    """The dimensions of a search.

    Args:
        method: With the settings that the search leaves alone.
        phases: Of the method; stages that no phase has are not searched.
        chosen: None takes the ranges beside the fields, `paper` Table 7; else a TOML file or a table of the same
            shape, whose entries replace ranges, add fields, or hold one at a single value (in every trial but the
            default). With `only = true` the file's fields are the whole space.

    Raises:
        UserError: A key is unknown, a range is none, or nothing is left to vary.
    """
    known = searchable(method, phases)
    if chosen == "paper":
        return paper_space(method, phases)
    table = {} if chosen is None else chosen if isinstance(chosen, Mapping) else read_config(Path(chosen))
    only = bool(table.get("only", False))
    out = {} if only else {f.key: f for f in known.values() if f.range is not None and f.searched}
    for key, value in flat({k: v for k, v in table.items() if k != "only"}, set(known)):
        if key not in known:
            raise UserError(f'--space: unknown key "{key}"{did_you_mean(key, known)}')
        out[key] = replace(known[key], range=read_range(known[key], value), searched=True)
    if not out:
        raise UserError("--space: nothing is left to vary; give a field a range, as learning_rate = [1e-4, 1e-3]")
    return [Dimension(f.key, f.range, f.whole) for f in out.values() if f.range is not None]


@dataclass(frozen=True)
class Searchable:
    """A field that a space may name."""

    key: str
    range: Range | Categorical | None
    whole: bool
    bounds: Range | Categorical | None
    """What its values are refused by."""
    searched: bool
    """Whether a search draws it unless told otherwise."""


def searchable(method: Method, phases: Sequence[Phase]) -> dict[str, Searchable]:
    """The fields of a method and of the stages that its phases have, by path."""
    out: dict[str, Searchable] = {}
    stages = {phase.name for phase in phases}
    learns = {phase.name for phase in phases if phase.scope == "all"}
    for field in describe_fields(type(method)):
        if not isinstance(getattr(method, field.name), Stage):
            if field.name != "scope":
                out |= entry(f"method.{field.name}", field)
        elif field.name in stages:
            for inner in describe_fields(Stage):
                if inner.name != "backbone_learning_rate" or field.name in learns:
                    out |= entry(f"method.{field.name}.{inner.name}", inner)
    return out


def entry(key: str, field: FieldInfo) -> dict[str, Searchable]:
    """A field under its path."""
    allowed = field.allowed
    drawn = allowed.search if allowed is not None else None
    whole = field.type is int
    chosen = drawn or (allowed if isinstance(allowed, Categorical) else None)
    return {key: Searchable(key, chosen, whole, allowed, drawn is not None)}


def flat(table: Mapping[str, Any], known: set[str], path: str = "") -> list[tuple[str, Any]]:
    """Entries by path; tables with `low` are ranges, and `method.` may be left out."""
    out = []
    for name, value in table.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and "low" not in value:
            out += flat(value, known, f"{key}.")
        else:
            out.append((key if key in known or f"method.{key}" not in known else f"method.{key}", value))
    return out


def read_range(field: Searchable, value: Any) -> Range | Categorical:
    """The range that a space gives a field.

    Raises:
        UserError: It is no range, or leaves what the field allows.
    """
    if isinstance(value, Mapping):
        extra = set(value) - {"low", "high", "log"}
        if extra or "high" not in value:
            raise UserError(f"--space: {field.key}: write {{low = 1e-4, high = 1e-2, log = true}} or a list of values")
        read: Range | Categorical = Range(value["low"], value["high"], bool(value.get("log", False)))
        ends = [value["low"], value["high"]]
        if not value["low"] < value["high"] or (value.get("log") and value["low"] <= 0):
            raise UserError(f"--space: {field.key}: low = {value['low']} and high = {value['high']} are no range")
    else:
        ends = value if isinstance(value, list) else [value]
        if not ends:
            raise UserError(f"--space: {field.key}: the list has no value")
        read = Categorical(tuple(ends))
    for end in ends:
        refuse_outside(field, end)
    return read


def refuse_outside(field: Searchable, value: Any) -> None:
    """Refuse a value that the field does not allow.

    Raises:
        UserError: It does not.
    """
    bounds = field.bounds
    if isinstance(bounds, Range) and (not isinstance(value, int | float) or not bounds.low <= value <= bounds.high):
        raise UserError(f"--space: {field.key}: {value} is outside {bounds.low:g} to {bounds.high:g}")
    if isinstance(bounds, Categorical) and value not in bounds.values:
        raise UserError(f"--space: {field.key}: {value!r} is none of {', '.join(map(str, bounds.values))}")


def paper_space(method: Method, phases: Sequence[Phase]) -> list[Dimension]:
    """Table 7 for the stage of what the method learns in the end."""
    name = next((p.name for p in phases if p.scope == method.scope), phases[-1].name)
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    assert name in known, f"phase {name} has no stage of its name"
    out = []
    for field, values in PAPER.items():
        also = (f"method.{name}.backbone_learning_rate",) if field == "learning_rate" and method.scope == "all" else ()
        out.append(Dimension(f"method.{name}.{field}", Categorical(values), isinstance(values[0], int), also))
    return out


def points_of(space: Sequence[Dimension], trials: int | None, seed: int, scope: str) -> list[dict[str, Any]]:
    """The settings to try beside the default, as values by dimension key.

    A grid is tried whole where it fits into the number of trials (or, in scope `head`, where no number is given), else
    a random part of it; a space with intervals is filled evenly by a scrambled Halton sequence.

    Args:
        space: Of the search.
        trials: How many with the default; None: the grid in scope `head`, else 32 (head) or 16 (all).
        seed: Of the draw.
        scope: What learns.
    """
    count = (trials or (32 if scope == "head" else 16)) - 1
    if all(isinstance(d.range, Categorical) for d in space):
        grid = list(itertools.product(*(d.range.values for d in space if isinstance(d.range, Categorical))))
        if count < len(grid) and not (trials is None and scope == "head"):
            keep = np.sort(np.random.default_rng(seed).permutation(len(grid))[:count])
            grid = [grid[i] for i in keep]
        return [dict(zip((d.key for d in space), point, strict=True)) for point in grid]
    from scipy.stats import qmc

    unit = qmc.Halton(len(space), scramble=True, rng=np.random.default_rng(seed)).random(max(0, count))
    return [{d.key: d.at(float(u)) for d, u in zip(space, row, strict=True)} for row in unit]


def scaled(dimension: Dimension, values: Sequence[Any]) -> np.ndarray:
    """Values as numbers between 0 and 1 over what was tried, for plots and importance; choices by their place."""
    if isinstance(dimension.range, Categorical) and not all(isinstance(v, int | float) for v in dimension.range.values):
        names = [str(v) for v in dimension.range.values]
        places = [names.index(str(v)) if str(v) in names else len(names) for v in values]
        return np.asarray(places, float) / max(1, max(places))
    numbers = np.asarray([math.log(float(v)) if dimension.log and float(v) > 0 else float(v) for v in values])
    low, high = float(numbers.min()), float(numbers.max())
    return (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
