"""Fills the tables of the documentation from the code, so that a default is written down once.

mkdocs calls `on_page_markdown`. A page asks for a table by a line of its own:

    <!-- table: architectures -->
    <!-- table: method turn -->
    <!-- table: data -->  (also: model, run)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from cleantune.backbones import ARCHITECTURES
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.config.schema import describe_fields
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical, Range

ASKED = re.compile(r"^<!-- table: (.+?) -->$", re.MULTILINE)
SPECS = {"data": DataConfig, "model": ModelConfig, "run": RunConfig}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown with the tables it asks for."""
    return ASKED.sub(lambda match: wanted(*match.group(1).split()), markdown)


def wanted(name: str, *rest: str) -> str:
    """The table of a name; an unknown one raises KeyError, which ends the build."""
    if name == "architectures":
        return architectures()
    if name == "method":
        return settings(METHODS[rest[0]], "method.")
    return settings(SPECS[name], f"{name}.")


def architectures() -> str:
    """Every architecture with its feature."""
    rows = (
        (f"`{a.model_type}`", a.kind, a.feature, f"`{a.native_class}`" if a.native_class else "–", f"{a.learning_rate:g}")
        for a in ARCHITECTURES.values()
    )
    return grid(("`model_type`", "takes", "feature", "saved as transformers'", "learning rate"), rows)


def settings(cls: type, prefix: str) -> str:
    """Every setting of a dataclass with its default, its range and what it is, stages one level down."""
    return grid(("setting", "default", "allowed", "meaning"), rows_of(cls, cls, prefix))


def rows_of(cls: type, default: Any, prefix: str) -> Iterable[Sequence[str]]:
    for field in describe_fields(cls):
        value = getattr(default, field.name, field.default)
        if is_dataclass(value) and not isinstance(value, type):
            yield from rows_of(type(value), value, f"{prefix}{field.name}.")
        else:
            yield f"`{prefix}{field.name}`", spelled(value), allowed(field.allowed), field.help.replace("|", "\\|")


def spelled(value: Any) -> str:
    """A default as a configuration file writes it."""
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float | str):
        return f"`{value}`" if value != "" else "`''`"
    return "needed"


def allowed(limits: Range | Categorical | None) -> str:
    if isinstance(limits, Range):
        return f"{limits.low:g} to {limits.high:g}"
    return ", ".join(f"`{value}`" for value in limits.values) if limits else ""


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
