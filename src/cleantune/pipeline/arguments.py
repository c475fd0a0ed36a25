"""Arguments of an entry point, merged into one configuration table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig, read_config
from cleantune.config.schema import describe_fields, merge, nest, parse_assignment
from cleantune.errors import UserError, did_you_mean

LORA_RANK = 8
"""Rank of scope `lora`, as in the authors' code of arXiv:2403.06869."""
SECTIONS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "run": RunConfig}
"""Sections of a configuration whose fields are options by name."""


@dataclass(frozen=True, kw_only=True)
class FitArguments:
    """Arguments of an entry point as the user gives them; None leaves a setting to the configuration file."""

    data: Any = None
    model: Any = None
    method: str | None = None
    scope: str | None = None
    preset: str | None = None
    seed: int | None = None
    """Default of `split_seed`, `noise_seed` and `train_seed`."""
    config: str | Path | Mapping[str, Any] | None = None
    """TOML file or table that the other arguments override."""
    settings: Mapping[str, Any] | list[str] | None = None
    """Fields by path, `{"method.tau": 0.7}` or `["method.tau=0.7"]`; they override the rest."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sections data, model and run by name."""

    def to_table(self) -> dict[str, Any]:
        """Merge the arguments into one table: the file first, then names, then settings by path.

        Raises:
            UserError: An option is unknown, or the file cannot be read.
        """
        scope, config = self.scope, load_table(self.config)
        if scope == "lora":
            scope, config = "all", merge({"model": {"lora_rank": LORA_RANK}}, config)
        values: dict[str, Any] = {
            "method.name": self.method,
            "method.scope": scope,
            "method.preset": self.preset,
            "data.data": self.data,
            "model.model": self.model,
        }
        values |= dict.fromkeys(("data.split_seed", "run.noise_seed", "run.train_seed"), self.seed)
        return merge_arguments(config, values | option_paths(self.options), self.settings)


def load_table(config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a configuration as a table: a file is read, a mapping copied, None is empty."""
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else read_config(Path(config))


def option_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by the paths of their fields.

    Raises:
        UserError: No section has a field of this name; the sentence has the nearest one.
    """
    sections = {info.name: name for name, record in SECTIONS.items() for info in describe_fields(record)}
    for name in options:
        if name not in sections:
            raise UserError(f'unknown option "{name}"{did_you_mean(name, sections)}')
    return {f"{sections[name]}.{name}": value for name, value in options.items()}


def merge_arguments(
    table: Mapping[str, Any],
    values: Mapping[str, Any],
    settings: Mapping[str, Any] | list[str] | None,
    locate: Callable[[list[str]], list[str]] = list,
) -> dict[str, Any]:
    """Merge values and settings into a table; later ones win.

    Args:
        table: Base.
        values: Values by dotted path; None leaves the table as it is.
        settings: Fields by path, as a mapping or as `path=value` texts.
        locate: Function from the path of a setting to its place in the table.
    """
    merged = dict(table)
    for path, value in values.items():
        if value is not None:
            merged = merge(merged, nest(path.split("."), value))
    pairs = (
        [(path.split("."), value) for path, value in settings.items()]
        if isinstance(settings, Mapping)
        else [parse_assignment(text) for text in settings or []]
    )
    for keys, value in pairs:
        merged = merge(merged, nest(locate(keys), value))
    return merged
