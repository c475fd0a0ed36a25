"""Frozen dataclasses as configuration: read from tables, written to tables, checked, and described from one place."""

from __future__ import annotations

import ast
import inspect
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods.protocol import Choice, Range

T = TypeVar("T")


@dataclass(frozen=True)
class FieldInfo:
    """What is known of one field: all that help, docs and a search need."""

    name: str
    kind: Any
    default: Any
    allowed: Range | Choice | None
    help: str


def describe_fields(cls: type) -> tuple[FieldInfo, ...]:
    """Every field of a dataclass with its type, default, range and the comment below it.

    Ranges come from `Annotated[..., Interval | Choice]`, `Literal` and `bool`; comments are the strings that
    stand under the fields.
    """
    if cls not in _described:
        _described[cls] = _describe(cls)
    return _described[cls]


_described: dict[type, tuple[FieldInfo, ...]] = {}


def _describe(cls: type) -> tuple[FieldInfo, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    comments = _comments(cls)
    out = []
    for field in fields(cls):
        kind, allowed = hints[field.name], None
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
            allowed = next((m for m in marks if isinstance(m, Range | Choice)), None)
        if get_origin(kind) is Literal:
            allowed = Choice(get_args(kind))
        default = field.default if field.default is not MISSING else (
            field.default_factory() if field.default_factory is not MISSING else MISSING
        )  # fmt: skip
        out.append(FieldInfo(field.name, kind, default, allowed, comments.get(field.name, "")))
    return tuple(out)


def _comments(cls: type) -> dict[str, str]:
    """The string below each field of a class and of the classes it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[line.target.id] = " ".join(text.value.split())
    return found


def from_dict(cls: type[T], table: Mapping[str, Any], path: str, start: T | None = None) -> T:
    """A dataclass from a table, over its defaults or over a given start.

    Args:
        cls: The dataclass.
        table: Values by field name; sub-tables for fields that are dataclasses.
        path: Where the table stands, for messages: `method.tune`.
        start: What fields that the table does not name keep.

    Raises:
        UserError: A key is unknown, or a value has the wrong type or leaves its range; the sentence names the key.
    """
    known = {d.name: d for d in describe_fields(cls)}
    refuse_unknown_keys(table, known, f"{path}.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        old = getattr(start, key) if start is not None else known[key].default
        values[key] = _value(known[key], value, f"{path}.{key}", old)
    if start is not None:
        return replace(start, **values)  # type: ignore[type-var]
    missing = [d.name for d in known.values() if d.default is MISSING and d.name not in values]
    if missing:
        raise UserError(f'key "{path}.{missing[0]}" is missing')
    return cls(**values)


def _value(field: FieldInfo, value: Any, key: str, old: Any) -> Any:
    """One value, converted where nothing is lost and checked against type and range."""
    options = get_args(field.kind) if get_origin(field.kind) in (Union, types.UnionType) else (field.kind,)
    if value is None or (isinstance(value, str) and value == "none" and type(None) in options and str not in options):
        if type(None) in options:
            return None
        raise UserError(f'key "{key}" must not be empty')
    inner = next((o for o in options if is_dataclass(o)), None)
    if inner is not None:
        if isinstance(value, inner):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise UserError(f'key "{key}" is a table: set one of {", ".join(d.name for d in describe_fields(inner))}')  # type: ignore[arg-type]
        return from_dict(inner, value, key, old if is_dataclass(old) else None)  # type: ignore[arg-type]
    value = _convert(options, value, key)
    allowed = field.allowed
    if isinstance(allowed, Choice) and value not in allowed.values:
        names = [str(v) for v in allowed.values]
        raise UserError(f'key "{key}" is "{value}"{did_you_mean(str(value), names)}')
    if isinstance(allowed, Range) and not allowed.low <= value <= allowed.high:
        raise UserError(f'key "{key}" is {value}, outside {allowed.low:g} to {allowed.high:g}')
    return value


def _convert(options: tuple[Any, ...], value: Any, key: str) -> Any:
    """The value in one of the field's types, or a sentence."""
    plain = [str if get_origin(o) is Literal else o for o in options if o is not type(None)]
    for kind in plain:
        if kind is Any:
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
        origin = get_origin(kind)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
    wanted = " or ".join({"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}.get(
        getattr(k, "__name__", str(k)), str(k)) for k in plain)  # fmt: skip
    raise UserError(f'key "{key}" is {value!r}; it must be {wanted}')


def to_dict(record: Any) -> dict[str, Any]:
    """A dataclass as a table that `from_dict` reads back; fields that are None are left out."""
    table: dict[str, Any] = {}
    for field in describe_fields(type(record)):
        value = getattr(record, field.name)
        if value is None:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        table[field.name] = value
    return table


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """The key path and the value of `method.tau=0.7`; the value is read as TOML, else taken as a text.

    Raises:
        UserError: There is no equals sign.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f'--set "{text}": write KEY=VALUE, such as method.tau=0.7')
    try:
        read = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        read = value.strip()
    return key.strip().split("."), read


def nest(path: list[str], value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the path a.b."""
    for key in reversed(path):
        value = {key: value}
    return typing.cast(dict[str, Any], value)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one; where both name a key the second wins, sub-tables are merged."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out
