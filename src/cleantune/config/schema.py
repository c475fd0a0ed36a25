"""Frozen dataclasses as configuration: one declaration gives TOML, checks, help, docs and search spaces."""

from __future__ import annotations

import ast
import inspect
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods.protocol import Categorical, Range

T = TypeVar("T")
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""Names of types in error messages."""


@dataclass(frozen=True)
class FieldInfo:
    """Description of one field, from which help, docs and search spaces are made."""

    name: str
    type: Any
    """Type annotation without its `Annotated` marks."""
    default: Any
    """Default value, or `MISSING` for a required field."""
    allowed: Range | Categorical | None
    """Allowed values; None where the type is the only restriction."""
    help: str
    """String literal below the field, on one line."""


_descriptions: dict[type, tuple[FieldInfo, ...]] = {}


def describe_fields(cls: type) -> tuple[FieldInfo, ...]:
    """Describe each field of a dataclass.

    Allowed values come from `Annotated[..., Range | Categorical]` and `Literal`, help from the string literal below the
    field.
    """
    if cls not in _descriptions:
        _descriptions[cls] = tuple(_describe_fields(cls))
    return _descriptions[cls]


def _describe_fields(cls: type) -> Iterator[FieldInfo]:
    hints = typing.get_type_hints(cls, include_extras=True)
    help_texts = _help_texts(cls)
    for field in fields(cls):
        annotation, marks = hints[field.name], list[Any]()
        if get_origin(annotation) is Annotated:
            annotation, *marks = get_args(annotation)
        if get_origin(annotation) is Literal:
            marks = [Categorical(get_args(annotation))]
        allowed = next((mark for mark in marks if isinstance(mark, Range | Categorical)), None)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield FieldInfo(field.name, annotation, default, allowed, help_texts.get(field.name, ""))


def _help_texts(cls: type) -> dict[str, str]:
    """Collect the string literals below the fields of a class and its base classes."""
    texts: dict[str, str] = {}
    for owner in filter(is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def from_dict(cls: type[T], table: Mapping[str, Any], path: str, base: T | None = None) -> T:
    """Build a dataclass from a table.

    Args:
        cls: Dataclass to build.
        table: Values by field name, with a sub-table for each field that is a dataclass.
        path: Key of the table for error messages, such as `method.tune`.
        base: Instance whose values are kept where the table has no key; None for the defaults of `cls`.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type or is out of range; the message names the
            key.
    """
    infos = {info.name: info for info in describe_fields(cls)}
    refuse_unknown_keys(table, infos, f"{path}.")
    current = {name: info.default if base is None else getattr(base, name) for name, info in infos.items()}
    values = {name: _parse(infos[name], value, f"{path}.{name}", current[name]) for name, value in table.items()}
    if base is not None:
        return replace(base, **values)  # type: ignore[type-var]
    for name, info in infos.items():
        if info.default is MISSING and name not in values:
            raise UserError(f'key "{path}.{name}" is missing')
    return cls(**values)


def _parse(info: FieldInfo, value: Any, key: str, current: Any) -> Any:
    """Check one value and convert it to the type of its field."""
    members = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else (info.type,)
    optional = types.NoneType in members
    if value is None or (isinstance(value, str) and value == "none" and optional and str not in members):
        if not optional:
            raise UserError(f'key "{key}" must not be empty')
        return None
    record: Any = next(filter(is_dataclass, members), None)
    if record is not None:
        if isinstance(value, record):
            return value
        if not isinstance(value, Mapping):
            names = ", ".join(field.name for field in describe_fields(record))
            raise UserError(f'key "{key}" is a table: set one of {names}')
        return from_dict(record, value, key, current if isinstance(current, record) else None)
    value = _convert([str if get_origin(m) is Literal else m for m in members if m is not types.NoneType], value, key)
    allowed = info.allowed
    if isinstance(allowed, Categorical) and value not in allowed.values:
        raise UserError(f'key "{key}" is "{value}"{did_you_mean(str(value), map(str, allowed.values))}')
    if isinstance(allowed, Range) and not allowed.low <= value <= allowed.high:
        raise UserError(f'key "{key}" is {value}, outside {allowed.low:g} to {allowed.high:g}')
    return value


def _convert(members: Sequence[Any], value: Any, key: str) -> Any:
    """Convert a value to the first of the types that can represent it."""
    for member in members:
        if member is Any:
            return value
        if get_origin(member) is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if isinstance(value, bool):
            if member is bool:
                return value
        elif member is float and isinstance(value, int):
            return float(value)
        elif member in _TYPE_NAMES and isinstance(value, member):
            return value
    expected = " or ".join(_TYPE_NAMES.get(member, str(member)) for member in members)
    raise UserError(f'key "{key}" is {value!r}; it must be {expected}')


def to_dict(record: Any) -> dict[str, Any]:
    """Convert a dataclass to a table that `from_dict` reads back; fields that are None are omitted."""
    table: dict[str, Any] = {}
    for info in describe_fields(type(record)):
        value = getattr(record, info.name)
        if value is None:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        table[info.name] = value
    return table


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """Parse `method.tau=0.7` into its key path and its value.

    The value is read as TOML, and kept as text where it is not valid TOML.

    Raises:
        UserError: The text has no equals sign or no key.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f'--set "{text}": write KEY=VALUE, such as method.tau=0.7')
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return key.strip().split("."), parsed


def nest(path: Iterable[str], value: Any) -> dict[str, Any]:
    """Return the table `{"a": {"b": value}}` for the path a.b."""
    for key in reversed(list(path)):
        value = {key: value}
    return typing.cast(dict[str, Any], value)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables recursively; where both set a key, the second wins."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
