"""A matrix from what was said: files, options and settings in one table, checked, and every name resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cleantune.config.schema import describe_fields, merge
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods import METHODS
from cleantune.noise import format_noise, parse_noise
from cleantune.pipeline.arguments import load_table, merge_arguments, option_paths
from cleantune.studies.compare.matrix import OURS, SCOPES, TUNINGS, Cell, Entry, Matrix

KNOWN = ("preset", "matrix", "data", "model", "method", "settings", "run", "augmentation")
AXES = ("methods", "scopes", "noises", "models", "seeds", "tune", "entries")
ENTRY = ("name", "method", "scope", "preset", "settings")


def tabulate(
    data: Any,
    model: Any,
    said: Mapping[str, Any],
    preset: str | None,
    config: str | Path | Mapping[str, Any] | None,
    settings: Mapping[str, Any] | list[str] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """One table from everything that was said: the file first, then names, then settings by path."""
    many = None if model is None else list(model) if isinstance(model, list | tuple) else [model]
    values = {f"matrix.{key}": value for key, value in said.items()}
    values |= {"preset": preset, "data.data": data, "matrix.models": many} | option_paths(options)
    return merge_arguments(
        load_table(config), values, settings, lambda keys: ["settings", *keys] if keys[0] in METHODS else keys
    )


def resolve(table: Mapping[str, Any], features_only: bool | None = None) -> Matrix:
    """The matrix of a table.

    Args:
        table: As in the package's docstring.
        features_only: Whether the data are features; None before that is known.

    Raises:
        UserError: A name or key is unknown, a value leaves its range, or two entries have one name.
    """
    refuse_unknown_keys(table, KNOWN)
    axes = table.get("matrix", {})
    if not isinstance(axes, Mapping):
        raise UserError('key "matrix" is a table: set matrix.methods, matrix.noises and so on')
    refuse_unknown_keys(axes, AXES, "matrix.")
    for path, instead in OURS.items():
        part, key = path.split(".")
        if key in table.get(part, {}):
            raise UserError(f'key "{path}": a matrix sets it itself, by {instead}')
    if table.get("run", {}).get("workers", 1) != 1:
        raise UserError('key "run.workers": the cells of a matrix run in one process; leave workers out')
    models = tuple(as_list(axes.get("models", []), "matrix.models")) or (None,)
    entries = resolve_entries(table, axes, features_only)
    noises = tuple(dict.fromkeys(format_noise(parse_noise(str(n))) for n in as_list(axes.get("noises", ["none"]), "matrix.noises")))
    tune = axes.get("tune", False)
    if not isinstance(tune, bool):
        raise UserError(f'key "matrix.tune" is {tune!r}; it must be true or false')
    common = {key: dict(table[key]) for key in ("data", "model", "run", "augmentation") if key in table}
    matrix = Matrix(entries, noises, models, read_seeds(axes.get("seeds", 3)), tune, common)
    if not matrix.noises:
        raise UserError('key "matrix.noises" is empty; write ["none"] for the labels as they are')
    for entry in entries:
        matrix.config(Cell(entry, noises[0], 0, 0), None, bool(features_only))
    return matrix


def resolve_entries(table: Mapping[str, Any], axes: Mapping[str, Any], features_only: bool | None) -> tuple[Entry, ...]:
    """Methods x scopes, and the entries that are written out."""
    written = as_list(axes.get("entries", []), "matrix.entries")
    methods = known_names(axes.get("methods", [] if written else list(METHODS)), "method", METHODS)
    scopes = known_names(axes.get("scopes", ["head"] if features_only else list(SCOPES)), "scope", SCOPES)
    if features_only and "all" in scopes:
        raise UserError("these data are features without a backbone: only --scopes head works")
    preset = table.get("preset")
    refuse_unknown_preset(preset, methods)
    found = []
    for name in methods:
        own = preset if preset in METHODS[name].presets else None
        for scope in [None] if probes_and_tunes(name) else scopes:
            found.append(make_entry(table, {"method": name, "scope": scope, "preset": own}, features_only))
    for number, entry in enumerate(written):
        if not isinstance(entry, Mapping):
            raise UserError(f'key "matrix.entries" holds {entry!r}; each entry is a table with a method')
        refuse_unknown_keys(entry, ENTRY, f"matrix.entries[{number}].")
        if "method" not in entry:
            raise UserError(f'key "matrix.entries[{number}].method" is missing')
        found.append(make_entry(table, {"preset": preset} | dict(entry), features_only))
    names = [(entry.name, entry.tuning) for entry in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f'two entries are called "{twice[0]}" ({twice[1]}); give one another name')
    if not found:
        raise UserError("there is nothing to compare: name --methods, or matrix.entries in a config")
    refuse_idle_settings(table, found)
    return tuple(found)


def known_names(value: Any, what: str, known: Iterable[str]) -> list[str]:
    """A list of names, each once.

    Raises:
        UserError: One is not known; the sentence has the nearest.
    """
    names = as_list(value, f"matrix.{what}s")
    for name in names:
        if name not in known:
            raise UserError(f'unknown {what} "{name}"{did_you_mean(str(name), known)}')
    return list(dict.fromkeys(names))


def refuse_unknown_preset(preset: Any, methods: Sequence[str]) -> None:
    """Refuse a preset that none of the methods has.

    Raises:
        UserError: With the nearest.
    """
    known = {name for method in methods for name in METHODS[method].presets}
    if preset is not None and methods and preset not in known:
        raise UserError(f'no compared method has the preset "{preset}"{did_you_mean(str(preset), known)}')


def make_entry(table: Mapping[str, Any], said: Mapping[str, Any], features_only: bool | None) -> Entry:
    """An entry with the settings for all methods, then for its method, then its own."""
    method = str(said["method"])
    if method not in METHODS:
        raise UserError(f'unknown method "{method}"{did_you_mean(method, METHODS)}')
    fields = {f.name: f for f in describe_fields(METHODS[method])}
    scope = said.get("scope") or ("head" if features_only else fields["scope"].default)
    if scope not in SCOPES:
        raise UserError(f'unknown scope "{scope}"{did_you_mean(str(scope), SCOPES)}')
    shared = {key: value for key, value in table.get("method", {}).items() if key in fields}
    settings = merge(merge(shared, table.get("settings", {}).get(method, {})), said.get("settings") or {})
    both = probes_and_tunes(method) and scope == "all"
    return Entry(
        str(said.get("name") or method), method, scope, said.get("preset"), settings, TUNINGS["both" if both else scope]
    )


def probes_and_tunes(method: str) -> bool:
    """Whether the method by itself first trains a head and then everything, so that scopes do not apply to it."""
    return len({phase.scope for phase in METHODS[method]().phases()}) > 1


def refuse_idle_settings(table: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Refuse settings that no entry would take.

    Raises:
        UserError: With the nearest field or method.
    """
    methods = {entry.method for entry in entries}
    known = {f.name for method in methods for f in describe_fields(METHODS[method])} - {"scope"}
    for key in table.get("method", {}):
        if key in ("name", "scope", "preset"):
            axis = {"name": "matrix.methods", "scope": "matrix.scopes", "preset": "preset"}[key]
            raise UserError(f'key "method.{key}": a matrix sets it itself, by {axis}')
        if key not in known:
            raise UserError(f'unknown key "method.{key}": no compared method has it{did_you_mean(key, known)}')
    for name in table.get("settings", {}):
        if name not in METHODS:
            raise UserError(f'unknown key "settings.{name}"{did_you_mean(name, METHODS)}')
        if name not in methods:
            raise UserError(f'key "settings.{name}": {name} is not compared here, it is not among {sorted(methods)}')


def read_seeds(value: Any) -> tuple[int, ...]:
    """The seeds: a number of them, or which.

    Raises:
        UserError: There is none, one is no whole number from 0 on, or one comes twice.
    """
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    whole = isinstance(seeds, list | tuple) and all(isinstance(s, int) and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {value!r}: write how many (3), or which, each once (0,1,2)")
    return tuple(seeds)


def as_list(value: Any, key: str) -> list[Any]:
    """A list; one name alone stands for itself.

    Raises:
        UserError: It is neither.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    raise UserError(f'key "{key}" is {value!r}; it must be a list')
