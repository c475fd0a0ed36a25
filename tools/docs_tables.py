"""Generate tables of the documentation from the code, so that each default is written once.

mkdocs calls `on_page_markdown`. A page requests a table by a line of its own:

    <!-- table: architectures -->
    <!-- table: method turn -->
    <!-- table: data -->  (also: model, run, augmentation.image, augmentation.text)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from cleantune.backbones import ARCHITECTURES
from cleantune.config.augmentation import ImageAugmentation, TextAugmentation
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.config.schema import describe_fields
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical, Range

REQUEST = re.compile(r"^<!-- table: (.+?) -->$", re.MULTILINE)
CONFIGS = {
    "data": DataConfig,
    "model": ModelConfig,
    "run": RunConfig,
    "augmentation.image": ImageAugmentation,
    "augmentation.text": TextAugmentation,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the Markdown of a page with the requested tables."""
    return REQUEST.sub(lambda match: table(*match.group(1).split()), markdown)


def table(name: str, *rest: str) -> str:
    """Return the table of a name; an unknown name raises KeyError, which stops the build."""
    if name == "architectures":
        return architectures()
    if name == "method":
        return settings(METHODS[rest[0]], "method.")
    return settings(CONFIGS[name], f"{name}.")


def architectures() -> str:
    """Return the table of architectures with their features."""
    rows = (
        (
            f"`{a.model_type}`", a.kind, a.feature, f"`{a.native_class}`" if a.native_class else "–",
            f"{a.learning_rate:g}",
        )
        for a in ARCHITECTURES.values()
    )
    return grid(("`model_type`", "input", "feature", "export to transformers", "learning rate"), rows)


def settings(cls: type, prefix: str) -> str:
    """Return the table of the settings of a dataclass, with defaults and ranges; stages are nested one level."""
    return grid(("setting", "default", "allowed", "meaning"), setting_rows(cls, cls, prefix))


def setting_rows(cls: type, default: Any, prefix: str) -> Iterable[Sequence[str]]:
    for field in describe_fields(cls):
        value = getattr(default, field.name, field.default)
        if is_dataclass(value) and not isinstance(value, type):
            yield from setting_rows(type(value), value, f"{prefix}{field.name}.")
        else:
            meaning = field.help.replace("|", "\\|")
            yield f"`{prefix}{field.name}`", default_text(value), allowed_text(field.allowed), meaning


def default_text(value: Any) -> str:
    """Return a default as in a configuration file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float | str):
        return f"`{value}`" if value != "" else "`''`"
    return "required"


def allowed_text(limits: Range | Categorical | None) -> str:
    if isinstance(limits, Range):
        return f"{limits.low:g} to {limits.high:g}"
    return ", ".join(f"`{value}`" for value in limits.values) if limits else ""


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
