"""The verb `methods`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import click

from cleantune.config.schema import FieldInfo, describe_fields
from cleantune.errors import UserError, did_you_mean
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical, MLPHeadConfig, Range, Stage


class Setting(NamedTuple):
    """One setting of a method, as the command line and `--json` list it."""

    key: str
    default: Any
    allowed: str
    help: str


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON. [default: off]")
def methods(name: str | None, as_json: bool) -> None:
    """List the methods; with a NAME, its settings with defaults and ranges, and its presets."""
    if name is not None and name not in METHODS:
        raise UserError(f'unknown method "{name}"{did_you_mean(name, METHODS)}')
    selected = METHODS if name is None else {name: METHODS[name]}
    if as_json:
        listed = {key: list_settings(cls) for key, cls in selected.items()}
        click.echo(json.dumps(listed, indent=2, default=str))
    elif name is not None:
        click.echo("\n".join(_describe(name, selected[name])))
    else:
        width = max(map(len, selected))
        for key, cls in selected.items():
            click.echo(f"{key:<{width}}  {_first_line(cls)}")
        click.echo("\ncleantune methods NAME prints the settings of a method.")


def list_settings(cls: type, path: str = "method") -> list[Setting]:
    """Return every setting of a method, those of its stages and heads included.

    Args:
        cls: Dataclass of the method.
        path: Prefix of the keys.
    """
    out = []
    for field in describe_fields(cls):
        key = f"{path}.{field.name}"
        if isinstance(field.default, Stage | MLPHeadConfig):
            for inner in describe_fields(type(field.default)):
                value = getattr(field.default, inner.name)
                out.append(Setting(f"{key}.{inner.name}", value, _allowed(inner), inner.help))
        else:
            out.append(Setting(key, field.default, _allowed(field), field.help))
    return out


def _describe(name: str, cls: Any) -> list[str]:
    listed = list_settings(cls)
    widths = [max(len(str(row[i])) for row in listed) for i in range(3)] if listed else []
    rows = ["  ".join(f"{value!s:<{width}}" for value, width in zip(row, [*widths, 0], strict=True)) for row in listed]
    return [
        f"{name}: {_first_line(cls)}",
        f"presets: {', '.join(cls.presets) or 'none'}",
        *(["", *(row.rstrip() for row in rows)] if rows else ["settings: none"]),
    ]


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").splitlines()[0]


def _allowed(field: FieldInfo) -> str:
    if isinstance(field.allowed, Range):
        return f"{field.allowed.low:g} to {field.allowed.high:g}"
    if isinstance(field.allowed, Categorical):
        return " | ".join(str(v) for v in field.allowed.values)
    return "true | false" if field.type is bool else ""
