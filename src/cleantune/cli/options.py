"""Options that verbs share, and those made from the fields of records, with their comments and defaults as help."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from cleantune.config.schema import FieldInfo, describe_fields
from cleantune.methods.protocol import Choice

Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What adds an option to a function; `click.command` stands above them all."""

HIDDEN = frozenset({"data", "model"})
"""Fields that stand on the command line under a name of their own."""

CONFIG: Option = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file; what stands beside it here wins. [default: none]"
)
SILENT: Option = click.option("--quiet", is_flag=True, help="Say nothing but errors. [default: off]")


def setting(said: str) -> Option:
    """`--set`, after words on what can be set."""
    return click.option(
        "--set", "settings", multiple=True, help=f"{said}; repeatable. [default: none]", metavar="KEY=VALUE"
    )


def resume(what: str) -> Option:
    """`--resume` of a run, a matrix or a search."""
    return click.option("--resume", is_flag=True, help=f"Go on with an interrupted {what}. [default: off]")


def overwrite(what: str) -> Option:
    """`--overwrite` of a run, a matrix or a search."""
    return click.option("--overwrite", is_flag=True, help=f"Remove an earlier {what} in --out first. [default: off]")


def of(*records: type, left_out: Set[str] = frozenset()) -> Option:
    """One option for each field of the records, in their order, but for those left out and `HIDDEN` ones."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = [field for record in records for field in describe_fields(record)]
        for field in reversed(fields):  # as decorators do, the lowest first
            if field.name not in HIDDEN | left_out:
                function = option_of(field)(function)
        return function

    return decorate


def option_of(field: FieldInfo) -> Option:
    """The option of a field; it is None where the user says nothing."""
    kinds = [k for k in get_args(field.kind) if k is not type(None)] if _is_union(field.kind) else [field.kind]
    name = "--" + field.name.replace("_", "-")
    words = f"{field.help} [default: {'none' if field.default is None else field.default}]"
    if kinds == [bool]:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=words)
    if isinstance(field.allowed, Choice):
        return click.option(name, type=click.Choice([str(v) for v in field.allowed.values]), default=None, help=words)
    kind = {int: int, float: float}.get(kinds[0], str)
    return click.option(name, type=kind, default=None, help=words, metavar=_metavar(field, kind))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _metavar(field: FieldInfo, kind: type) -> str:
    if kind is not str:
        return "N" if kind is int else "X"
    columns = ("text", "image", "label", "id", "true_label", "split_column", "test_label")
    return "COL" if field.name in columns else "FILE" if field.name in ("test", "validation") else "TEXT"
