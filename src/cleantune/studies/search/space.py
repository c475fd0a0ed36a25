"""Define the search space: from the fields of a method and its stages, from a file, or from a paper's table."""

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
"""Significant digits of a sampled number."""
PAPER = {
    "learning_rate": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    "optimizer": ("sgd", "adamw"),
    "weight_decay": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "batch_size": (32, 64, 128),
}
"""Table 7 of arXiv:2310.17668; head and backbone have the same learning rate."""


@dataclass(frozen=True)
class Dimension:
    """One hyperparameter and the values that it may take."""

    key: str
    """Path, such as `method.probe.learning_rate`."""
    range: Range | Categorical
    is_integer: bool = False
    linked_keys: tuple[str, ...] = ()
    """Further paths that take the same value."""

    @property
    def name(self) -> str:
        """The path without `method.`."""
        return self.key.removeprefix("method.")

    @property
    def log(self) -> bool:
        """True if the scale is logarithmic."""
        if isinstance(self.range, Range):
            return self.range.log
        numbers = [v for v in self.range.values if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) == len(self.range.values) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)

    def at(self, fraction: float) -> Any:
        """Return the value at a fraction of the range, 0 to 1."""
        if isinstance(self.range, Categorical):
            return self.range.values[min(int(fraction * len(self.range.values)), len(self.range.values) - 1)]
        low, high = self.range.low, self.range.high
        value = low * (high / low) ** fraction if self.range.log else low + (high - low) * fraction
        value = float(f"{value:.{DIGITS}g}")
        value = min(max(value, low), high)
        return round(value) if self.is_integer else value


def space_of(method: Method, phases: Sequence[Phase], chosen: str | Mapping[str, Any] | None) -> list[Dimension]:
    """Return the dimensions of a search.

    Args:
        method: The method with the settings that the search does not change.
        phases: Its phases; stages without a phase are not searched.
        chosen: None for the search ranges of the fields, `paper` for Table 7; else a TOML file or a table of the same
            shape, whose entries replace ranges, add fields, or fix one at a single value (in every trial but the
            default). With `only = true` the fields of the file are the full space.

    Raises:
        UserError: A key is unknown, a range is invalid, or no field varies.
    """
    fields_by_key = searchable_fields(method, phases)
    if chosen == "paper":
        return paper_space(method, phases)
    table = {} if chosen is None else chosen if isinstance(chosen, Mapping) else read_config(Path(chosen))
    only = bool(table.get("only", False))
    out = {} if only else {f.key: f for f in fields_by_key.values() if f.range is not None and f.is_searched}
    for key, value in flatten({k: v for k, v in table.items() if k != "only"}, set(fields_by_key)):
        if key not in fields_by_key:
            raise UserError(f'--space: unknown key "{key}"{did_you_mean(key, fields_by_key)}')
        out[key] = replace(fields_by_key[key], range=read_range(fields_by_key[key], value), is_searched=True)
    if not out:
        raise UserError("--space: no field varies; give one a range, as learning_rate = [1e-4, 1e-3]")
    return [Dimension(f.key, f.range, f.is_integer) for f in out.values() if f.range is not None]


@dataclass(frozen=True)
class Searchable:
    """A field that a search space may name."""

    key: str
    range: Range | Categorical | None
    is_integer: bool
    bounds: Range | Categorical | None
    """Allowed values."""
    is_searched: bool
    """True if the default space includes it."""


def searchable_fields(method: Method, phases: Sequence[Phase]) -> dict[str, Searchable]:
    """Return the fields of a method and of the stages of its phases, by path."""
    out: dict[str, Searchable] = {}
    stages = {phase.name for phase in phases}
    tunes = {phase.name for phase in phases if phase.scope == "all"}
    for field in describe_fields(type(method)):
        if not isinstance(getattr(method, field.name), Stage):
            if field.name != "scope":
                out |= searchable_field(f"method.{field.name}", field)
        elif field.name in stages:
            for inner in describe_fields(Stage):
                if inner.name != "backbone_learning_rate" or field.name in tunes:
                    out |= searchable_field(f"method.{field.name}.{inner.name}", inner)
    return out


def searchable_field(key: str, field: FieldInfo) -> dict[str, Searchable]:
    """Return a field under its path."""
    allowed = field.allowed
    search = allowed.search if allowed is not None else None
    values = search or (allowed if isinstance(allowed, Categorical) else None)
    return {key: Searchable(key, values, field.type is int, allowed, search is not None)}


def flatten(table: Mapping[str, Any], keys: set[str], path: str = "") -> list[tuple[str, Any]]:
    """Return entries by path; tables with `low` are ranges, and `method.` may be omitted."""
    out = []
    for name, value in table.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and "low" not in value:
            out += flatten(value, keys, f"{key}.")
        else:
            out.append((key if key in keys or f"method.{key}" not in keys else f"method.{key}", value))
    return out


def read_range(field: Searchable, value: Any) -> Range | Categorical:
    """Return the range that a search space gives to a field.

    Raises:
        UserError: It is not a range, or exceeds the allowed values of the field.
    """
    if isinstance(value, Mapping):
        extra = set(value) - {"low", "high", "log"}
        if extra or "high" not in value:
            raise UserError(f"--space: {field.key}: write {{low = 1e-4, high = 1e-2, log = true}} or a list of values")
        values: Range | Categorical = Range(value["low"], value["high"], bool(value.get("log", False)))
        ends = [value["low"], value["high"]]
        if not value["low"] < value["high"] or (value.get("log") and value["low"] <= 0):
            raise UserError(f"--space: {field.key}: low = {value['low']} and high = {value['high']} are no range")
    else:
        ends = value if isinstance(value, list) else [value]
        if not ends:
            raise UserError(f"--space: {field.key}: the list has no value")
        values = Categorical(tuple(ends))
    for end in ends:
        refuse_outside(field, end)
    return values


def refuse_outside(field: Searchable, value: Any) -> None:
    """Refuse a value that the field does not allow.

    Raises:
        UserError: The value is not allowed.
    """
    bounds = field.bounds
    if isinstance(bounds, Range) and (not isinstance(value, int | float) or not bounds.low <= value <= bounds.high):
        raise UserError(f"--space: {field.key}: {value} is outside {bounds.low:g} to {bounds.high:g}")
    if isinstance(bounds, Categorical) and value not in bounds.values:
        raise UserError(f"--space: {field.key}: {value!r} is none of {', '.join(map(str, bounds.values))}")


def paper_space(method: Method, phases: Sequence[Phase]) -> list[Dimension]:
    """Return Table 7 of arXiv:2310.17668 for the last stage that trains the scope of the method."""
    name = next((p.name for p in phases if p.scope == method.scope), phases[-1].name)
    assert name in {f.name for f in fields(method)}, f"phase {name} has no stage of its name"  # type: ignore[arg-type]
    out = []
    for field, values in PAPER.items():
        linked = field == "learning_rate" and method.scope == "all"
        keys = (f"method.{name}.backbone_learning_rate",) if linked else ()
        out.append(Dimension(f"method.{name}.{field}", Categorical(values), isinstance(values[0], int), keys))
    return out


def points_of(space: Sequence[Dimension], trials: int | None, seed: int, scope: str) -> list[dict[str, Any]]:
    """Return the settings to try besides the default, as values by dimension key.

    A grid is tried completely if it fits into the number of trials (or, in scope `head`, if no number is given),
    otherwise a random part of it; a space with ranges is sampled by a scrambled Halton sequence.

    Args:
        space: Search space.
        trials: Number of trials with the default; None: the grid in scope `head`, else 32 (head) or 16 (all).
        seed: Seed of the sampling.
        scope: Scope of the method.
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


def scale_values(dimension: Dimension, values: Sequence[Any]) -> np.ndarray:
    """Return values scaled to 0..1 over the tried ones, for plots and importance; names by their position."""
    if isinstance(dimension.range, Categorical) and not all(isinstance(v, int | float) for v in dimension.range.values):
        names = [str(v) for v in dimension.range.values]
        positions = [names.index(str(v)) if str(v) in names else len(names) for v in values]
        return np.asarray(positions, float) / max(1, max(positions))
    numbers = np.asarray([math.log(float(v)) if dimension.log and float(v) > 0 else float(v) for v in values])
    low, high = float(numbers.min()), float(numbers.max())
    return (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
