"""Read the TOML file of a study: plain values, and arrays of tables as records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from cleantune.config.run import load_toml
from cleantune.config.schema import from_dict
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.noise import format_noise, parse_noise

T = TypeVar("T")


def read_study(path: Path | Traversable, missing: str, from_table: Callable[[Mapping[str, Any]], T]) -> T:
    """Return the study of a TOML file.

    Args:
        path: The file.
        missing: Message if there is no such file.
        from_table: Function from the table to the study.

    Raises:
        UserError: The file is missing, not TOML, or refused; the message names file and key.
    """
    table = load_toml(path, missing)
    try:
        return from_table(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_fields(
    table: Mapping[str, Any], values: Sequence[str], records: Mapping[str, tuple[str, type]], required: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of a study from its table; lists become tuples and noises are normalized.

    Args:
        table: The table.
        values: Keys of plain values.
        records: Field and record type by the key of an array of tables.
        required: Keys that must be there.

    Raises:
        UserError: A key is unknown or missing, or a value leaves its range.
    """
    refuse_unknown_keys(table, [*values, *records])
    missing = next((key for key in required if not table.get(key)), None)
    if missing:
        raise UserError(f'key "{missing}" is missing')
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in values}
    if "noises" in fields:
        fields["noises"] = tuple(format_noise(parse_noise(noise)) for noise in fields["noises"])
    for key, (field, record) in records.items():
        entries = table.get(key, [])
        fields[field] = tuple(from_dict(record, entry, f"{key}[{k}]") for k, entry in enumerate(entries))
    return fields


def refuse_unknown_names(flag: str, paths: Mapping[str, str], names: Collection[str]) -> None:
    """Refuse paths of data or models that the study does not have.

    Raises:
        UserError: A name is unknown; the message suggests the nearest.
    """
    unknown = next((name for name in paths if name not in names), None)
    if unknown is not None:
        raise UserError(f'{flag} "{unknown}": the study has no such name{did_you_mean(unknown, names)}')
