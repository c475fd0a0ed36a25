"""Options that several verbs share, and options generated from the fields of configuration dataclasses."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from cleantune.cli.process import enable_logging
from cleantune.config.schema import FieldInfo, describe_fields
from cleantune.errors import UserError
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical

Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Decorator that adds an option to the function of a command."""

HIDDEN = frozenset({"data", "model"})
"""Fields with a hand-written argument or option."""

COLUMNS = frozenset({"text", "image", "label", "id", "true_label", "split_column", "test_label"})
"""Fields that name a column of the data."""

FILES = frozenset({"test", "validation"})
"""Fields that name a file or folder."""


def _enable_logging(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        enable_logging()


MODEL: Option = click.option(
    "--model", help="Checkpoint folder or hub id; not needed for embeddings. [default: none]", metavar="MODEL"
)
METHOD: Option = click.option("--method", help=f"One of {', '.join(METHODS)}. [default: robust]", metavar="NAME")
PRESET: Option = click.option(
    "--preset", help="Named settings of the method, such as paper. [default: none]", metavar="NAME"
)
SEED: Option = click.option("--seed", type=int, help="Seed of split, noise and training. [default: 0]", metavar="N")
CONFIG: Option = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file; options override its values. [default: none]"
)
QUIET: Option = click.option("--quiet", "-q", is_flag=True, help="Print errors and results only. [default: off]")
VERBOSE: Option = click.option(
    "--verbose", "-v", is_flag=True, expose_value=False, callback=_enable_logging,
    help="Print log messages, and the traceback of an error. [default: off]",
)  # fmt: skip


def scope(*values: str) -> Option:
    """Return `--scope` with the values that a verb allows."""
    words = {"head": "head (linear probing)", "all": "all (full fine-tuning)", "lora": "lora (LoRA)"}
    text = f"Parameters to train: {', '.join(words[v] for v in values)}. [default: the method's]"
    return click.option("--scope", type=click.Choice(values), help=text)


def out(content: str) -> Option:
    """Return the required `--out`, the folder of a run, a matrix or a search."""
    text = f"Folder of the {content}. [no default]"
    return click.option("--out", required=True, type=click.Path(path_type=Path), help=text)


def setting(text: str) -> Option:
    """Return the repeatable `--set KEY=VALUE` with a help text about the keys."""
    return click.option(
        "--set", "settings", multiple=True, help=f"{text}; repeatable. [default: none]", metavar="KEY=VALUE"
    )


def resume(content: str) -> Option:
    """Return `--resume` of a run, a matrix or a search."""
    return click.option("--resume", is_flag=True, help=f"Continue an interrupted {content}. [default: off]")


def overwrite(content: str) -> Option:
    """Return `--overwrite` of a run, a matrix or a search."""
    return click.option("--overwrite", is_flag=True, help=f"Replace an earlier {content} in --out. [default: off]")


def from_fields(
    *configs: type, exclude: Set[str] = frozenset(), defaults: Mapping[str, Any] = types.MappingProxyType({})
) -> Option:
    """Return a decorator that adds one option for each field of configuration dataclasses, in their order.

    Args:
        *configs: Dataclasses of `cleantune.config`.
        exclude: Names of fields without an option, in addition to `HIDDEN`.
        defaults: Defaults of the verb that differ from those of the fields, for the help.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = [field for config in configs for field in describe_fields(config)]
        for field in reversed(fields):  # the decorator applied last comes first in the help
            if field.name not in HIDDEN | exclude:
                default = defaults.get(field.name, field.default)
                function = from_field(replace(field, default=default))(function)
        return function

    return decorate


def from_field(field: FieldInfo) -> Option:
    """Return the option of a field; its value is None if the user does not set it."""
    kinds = [k for k in get_args(field.type) if k is not type(None)] if _is_union(field.type) else [field.type]
    name = "--" + field.name.replace("_", "-")
    text = f"{field.help} [default: {'none' if field.default is None else field.default}]"
    if kinds == [bool]:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=text)
    if isinstance(field.allowed, Categorical):
        return click.option(name, type=click.Choice([str(v) for v in field.allowed.values]), default=None, help=text)
    kind = {int: int, float: float}.get(kinds[0], str)
    return click.option(name, type=kind, default=None, help=text, metavar=_metavar(field, kind))


def parse_pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the values of an option NAME=PATH by name.

    Raises:
        UserError: A text does not have this form.
    """
    pairs = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or not path:
            raise UserError(f'{flag} "{text}": write NAME=PATH')
        pairs[name] = path
    return pairs


def drop_unset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user set, as keyword arguments."""
    return {name: value for name, value in values.items() if value is not None}


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _metavar(field: FieldInfo, kind: type) -> str:
    if kind is not str:
        return "N" if kind is int else "X"
    return "COL" if field.name in COLUMNS else "FILE" if field.name in FILES else "TEXT"
