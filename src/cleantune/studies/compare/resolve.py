"""Resolve a matrix from files, options and settings: check every name and value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cleantune.config.schema import describe_fields, merge
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods import METHODS
from cleantune.noise import format_noise, parse_noise
from cleantune.pipeline.arguments import load_table, merge_arguments, option_paths
from cleantune.studies.compare.matrix import MATRIX_KEYS, SCOPES, TUNINGS, Entry, Matrix

KEYS = ("preset", "matrix", "data", "model", "method", "settings", "run", "augmentation")
AXES = ("methods", "scopes", "noises", "models", "seeds", "tune", "entries")
ENTRY_KEYS = ("name", "method", "scope", "preset", "settings")


def arguments_to_table(
    data: Any,
    model: Any,
    axes: Mapping[str, Any],
    preset: str | None,
    config: str | Path | Mapping[str, Any] | None,
    settings: Mapping[str, Any] | list[str] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Merge the arguments of `compare` into one table: the config first, then names, then settings by path.

    Args:
        data: Argument of `compare`, as are the others.
        model: One model or a list of them.
        axes: Values of the table `matrix` by key; None is left out.
        preset: Preset of every method that has it.
        config: TOML file or table.
        settings: Fields by path.
        options: Fields of data, model and run by name.

    Raises:
        UserError: An option is unknown, or the file cannot be read.
    """
    models = None if model is None else list(model) if isinstance(model, list | tuple) else [model]
    values = {f"matrix.{key}": value for key, value in axes.items()}
    values |= {"preset": preset, "data.data": data, "matrix.models": models} | option_paths(options)
    return merge_arguments(load_table(config), values, settings, _setting_path)


def _setting_path(keys: list[str]) -> list[str]:
    """Return the place of a setting in the table; one that begins with a method belongs to that method."""
    return ["settings", *keys] if keys[0] in METHODS else keys


def resolve(table: Mapping[str, Any], features_only: bool | None = None) -> Matrix:
    """Return the matrix that a table describes.

    Args:
        table: The table, as in the package's docstring.
        features_only: Whether the data are features; None before the data are loaded.

    Raises:
        UserError: A name or key is unknown, a value leaves its range, or two entries have the same name.
    """
    refuse_unknown_keys(table, KEYS)
    axes = table.get("matrix", {})
    if not isinstance(axes, Mapping):
        raise UserError('key "matrix" is a table: set matrix.methods, matrix.noises and so on')
    refuse_unknown_keys(axes, AXES, "matrix.")
    for path, axis in MATRIX_KEYS.items():
        section, key = path.split(".")
        if key in table.get(section, {}):
            raise UserError(f'key "{path}": a matrix sets it itself, by {axis}')
    if table.get("run", {}).get("workers", 1) != 1:
        raise UserError('key "run.workers": the cells of a matrix run in one process; leave workers out')
    models = tuple(as_list(axes.get("models", []), "matrix.models")) or (None,)
    entries = resolve_entries(table, axes, features_only)
    names = as_list(axes.get("noises", ["none"]), "matrix.noises")
    noises = tuple(dict.fromkeys(format_noise(parse_noise(str(name))) for name in names))
    if not noises:
        raise UserError('key "matrix.noises" is empty; write ["none"] for the labels as they are')
    tune = axes.get("tune", False)
    if not isinstance(tune, bool):
        raise UserError(f'key "matrix.tune" is {tune!r}; it must be true or false')
    common = {key: dict(table[key]) for key in ("data", "model", "run", "augmentation") if key in table}
    matrix = Matrix(entries, noises, models, resolve_seeds(axes.get("seeds", 3)), tune, common)
    for entry in entries:
        matrix.config(matrix.cell(entry), None, bool(features_only))
    return matrix


def resolve_entries(table: Mapping[str, Any], axes: Mapping[str, Any], features_only: bool | None) -> tuple[Entry, ...]:
    """Return methods × scopes, and the entries that are written out."""
    written = as_list(axes.get("entries", []), "matrix.entries")
    methods = check_names(axes.get("methods", [] if written else list(METHODS)), "method", METHODS)
    scopes = check_names(axes.get("scopes", ["head"] if features_only else list(SCOPES)), "scope", SCOPES)
    if features_only and "all" in scopes:
        raise UserError("these data are features without a backbone: only --scopes head works")
    preset = table.get("preset")
    refuse_unknown_preset(preset, methods)
    entries = []
    for name in methods:
        its_preset = preset if preset in METHODS[name].presets else None
        for scope in [None] if probes_and_tunes(name) else scopes:
            entries.append(make_entry(table, {"method": name, "scope": scope, "preset": its_preset}, features_only))
    for number, entry in enumerate(written):
        if not isinstance(entry, Mapping):
            raise UserError(f'key "matrix.entries" contains {entry!r}; each entry is a table with a method')
        refuse_unknown_keys(entry, ENTRY_KEYS, f"matrix.entries[{number}].")
        if "method" not in entry:
            raise UserError(f'key "matrix.entries[{number}].method" is missing')
        entries.append(make_entry(table, {"preset": preset} | dict(entry), features_only))
    names = [(entry.name, entry.tuning) for entry in entries]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:
        raise UserError(f'two entries have the name "{duplicate[0]}" ({duplicate[1]}); give one another name')
    if not entries:
        raise UserError("there is nothing to compare: name --methods, or matrix.entries in a config")
    refuse_unused_settings(table, entries)
    return tuple(entries)


def check_names(value: Any, axis: str, names: Iterable[str]) -> list[str]:
    """Return a list of names without duplicates.

    Raises:
        UserError: A name is unknown; the message suggests the nearest.
    """
    chosen = as_list(value, f"matrix.{axis}s")
    for name in chosen:
        if name not in names:
            raise UserError(f'unknown {axis} "{name}"{did_you_mean(str(name), names)}')
    return list(dict.fromkeys(chosen))


def refuse_unknown_preset(preset: Any, methods: Sequence[str]) -> None:
    """Refuse a preset that none of the methods has.

    Raises:
        UserError: The message suggests the nearest preset.
    """
    presets = {name for method in methods for name in METHODS[method].presets}
    if preset is not None and methods and preset not in presets:
        raise UserError(f'no compared method has the preset "{preset}"{did_you_mean(str(preset), presets)}')


def make_entry(table: Mapping[str, Any], entry: Mapping[str, Any], features_only: bool | None) -> Entry:
    """Return an entry with the settings of all methods, then of its method, then its own."""
    method = str(entry["method"])
    if method not in METHODS:
        raise UserError(f'unknown method "{method}"{did_you_mean(method, METHODS)}')
    fields = {f.name: f for f in describe_fields(METHODS[method])}
    scope = entry.get("scope") or ("head" if features_only else fields["scope"].default)
    if scope not in SCOPES:
        raise UserError(f'unknown scope "{scope}"{did_you_mean(str(scope), SCOPES)}')
    shared = {key: value for key, value in table.get("method", {}).items() if key in fields}
    settings = merge(merge(shared, table.get("settings", {}).get(method, {})), entry.get("settings") or {})
    tuning = TUNINGS["both" if probes_and_tunes(method) and scope == "all" else scope]
    return Entry(str(entry.get("name") or method), method, scope, entry.get("preset"), settings, tuning)


def probes_and_tunes(method: str) -> bool:
    """Return whether the method trains first a head and then everything, so that scopes do not apply to it."""
    return len({phase.scope for phase in METHODS[method]().phases()}) > 1


def refuse_unused_settings(table: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Refuse settings that no entry has.

    Raises:
        UserError: The message suggests the nearest field or method.
    """
    methods = {entry.method for entry in entries}
    names = {f.name for method in methods for f in describe_fields(METHODS[method])} - {"scope"}
    for key in table.get("method", {}):
        if key in ("name", "scope", "preset"):
            axis = {"name": "matrix.methods", "scope": "matrix.scopes", "preset": "preset"}[key]
            raise UserError(f'key "method.{key}": a matrix sets it itself, by {axis}')
        if key not in names:
            raise UserError(f'unknown key "method.{key}": no compared method has it{did_you_mean(key, names)}')
    for name in table.get("settings", {}):
        if name not in METHODS:
            raise UserError(f'unknown key "settings.{name}"{did_you_mean(name, METHODS)}')
        if name not in methods:
            raise UserError(f'key "settings.{name}": {name} is not compared here, it is not among {sorted(methods)}')


def resolve_seeds(value: Any) -> tuple[int, ...]:
    """Return the seeds from their number or their list.

    Raises:
        UserError: There is none, one is not an integer from 0 on, or one occurs twice.
    """
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    valid = isinstance(seeds, list | tuple) and all(isinstance(s, int) and s >= 0 for s in seeds)
    if not valid or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {value!r}: write how many (3), or which, each once (0,1,2)")
    return tuple(seeds)


def as_list(value: Any, key: str) -> list[Any]:
    """Return a list; a single name becomes a list of one.

    Raises:
        UserError: The value is neither.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    raise UserError(f'key "{key}" is {value!r}; it must be a list')
