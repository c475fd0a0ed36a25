"""A transfer study as a file: models, tasks with their targets, tunings, noises, fractions, and the cells they make."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cleantune.config.data import DataConfig
from cleantune.config.run import build_method, load_toml
from cleantune.config.schema import from_dict, to_dict
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods.protocol import Method, Range
from cleantune.noise import format_noise, parse_noise

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "mcc", "pearson"]


@dataclass(frozen=True)
class Backbone:
    """One pre-trained model."""

    name: str
    """In tables."""
    model: str
    """Hub id or folder of transformers; `--model NAME=PATH` overrides it. `none` for data that are features."""
    architecture: str = "resnet"
    """What the stand-in builds; presets depend on it."""
    gamma: Annotated[float, Range(-1.0, 1.0)] = -1.0
    """Share of wrong labels in its pre-training, for figures; -1: not known."""
    seed: Annotated[int, Range(0, 1_000_000)] = 0
    """Of its pre-training; models of one name and several seeds are averaged."""
    image_size: Annotated[int, Range(0, 4096)] = 0
    """Side of its images in pixels; 0: the checkpoint's own."""


@dataclass(frozen=True)
class Target:
    """Data of other domains that a task's classifier is tested on."""

    name: str
    """For `--data NAME=PATH`."""
    data: str
    """In any form that `fit` takes; every row counts, or the part `test`."""
    text: str | None = None
    """Column of texts."""
    image: str | None = None
    """Column of images."""
    label: str | None = None
    """Column of labels."""
    domain_column: str | None = None
    """Column that divides these data into domains."""
    join: tuple[str, ...] = ()
    """Columns of texts that are read as one text, one after the other; in the place of `text`."""
    map: Any = None
    """From classes of the source to labels here, many to one."""
    subset: bool = False
    """Only classes that occur in a domain compete there."""


@dataclass(frozen=True)
class Task:
    """Data to learn from, with a test split in domain and targets out of it."""

    name: str
    """In tables, and for `--data NAME=PATH`."""
    data: Any
    """Fields of `DataConfig`: data, label, test, …"""
    kind: Literal["image", "text", "features"] = "image"
    """What the samples are."""
    join: tuple[str, ...] = ()
    """Columns of texts that are read as one text, one after the other; in the place of `text`."""
    judged: Literal["test", "validation"] = "test"
    """Split that is measured; GLUE's test labels are secret, so its validation split is."""
    domain_column: str | None = None
    """Column that divides the rows into domains, of which one is learned from and all others are targets."""
    source: str | None = None
    """The domain that is learned from."""
    test_fraction: Annotated[float, Range(0.01, 0.9)] = 0.2
    """Share of the source domain held out for the test in domain."""
    regression: bool = False
    """Labels are numbers, learned by the squared error and measured by Pearson's correlation."""
    metric: Metric = "accuracy"
    """What counts."""
    target: tuple[Any, ...] = ()
    """Tables of targets."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """As records."""
        return tuple(from_dict(Target, one, f"target of {self.name}") for one in self.target)


@dataclass(frozen=True)
class Tuning:
    """A method with settings of its own."""

    name: str
    """In tables."""
    method: str
    """Of `cleantune methods`; what is trained is a head on features."""
    preset: str | None = None
    """Named settings."""
    settings: Any = None
    """Fields that differ, by name or path."""

    def configured(self, architecture: str) -> Method:
        """The method, for features of an architecture."""
        return build_method(self.method, self.preset, self.settings or {}, architecture, True)


@dataclass(frozen=True)
class Cell:
    """One training of a head, and all that it is tested on."""

    model: Backbone
    task: Task
    noise: str
    fraction: float
    tuning: Tuning
    seed: int

    @property
    def file(self) -> str:
        """A name for its record, which changes with anything that the record depends on."""
        method = self.tuning.configured(self.model.architecture)  # so that a new default is a new cell
        learns = [to_dict(method), *(to_dict(phase.stage) for phase in method.phases())]
        parts = [
            to_dict(self.model),
            to_dict(self.task),
            self.noise,
            self.fraction,
            self.tuning.name,
            learns,
            self.seed,
        ]
        mark = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]
        words = f"{self.model.name}_{self.model.seed}_{self.task.name}_{self.noise}_{self.tuning.name}_{self.seed}"
        return f"{re.sub(r'[^a-z0-9._]+', '-', words.lower())[:90]}-{mark}.json"


@dataclass(frozen=True)
class Study:
    """Everything that is to be compared."""

    title: str
    models: tuple[Backbone, ...]
    tasks: tuple[Task, ...]
    tunings: tuple[Tuning, ...]
    seeds: tuple[int, ...] = (0,)
    """Of initial weights, order, noise and fractions."""
    noises: tuple[str, ...] = ("none",)
    """Put into the training labels of a task."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the training rows, drawn by class."""
    note: str = ""
    """What a reader should know, in a sentence."""

    def cells(self) -> list[Cell]:
        """Every training: by model, so that each is opened once, and by seed, so that what is stopped is balanced."""
        axes = (self.models, self.seeds, self.noises, self.fractions, self.tasks, self.tunings)
        return [
            Cell(model, task, noise, fraction, tuning, seed)
            for model, seed, noise, fraction, task, tuning in itertools.product(*axes)
        ]


PARTS: dict[str, tuple[str, type]] = {
    "model": ("models", Backbone), "task": ("tasks", Task), "tuning": ("tunings", Tuning),
}  # fmt: skip
"""Arrays of tables of a file: field of the study, and record."""
PLAIN = ("title", "note", "seeds", "noises", "fractions")


def read(path: Path) -> Study:
    """The study of a TOML file.

    Raises:
        UserError: There is none, it is not TOML, or a key or value is not known; the sentence names file and key.
    """
    table = load_toml(path, f"there is no study {path}")
    try:
        return study(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def study(table: Mapping[str, Any]) -> Study:
    """The study that a table spells; every tuning is configured once, so that no key goes unread.

    Raises:
        UserError: A key or value is not known.
    """
    refuse_unknown_keys(table, [*PLAIN, *PARTS])
    missing = next((key for key in ("title", *PARTS) if not table.get(key)), None)
    if missing:
        raise UserError(f'key "{missing}" is missing')
    parts: dict[str, Any] = {
        field: tuple(from_dict(record, entry, f"{name}[{k}]") for k, entry in enumerate(table[name]))
        for name, (field, record) in PARTS.items()
    }
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in PLAIN}
    if "noises" in plain:
        plain["noises"] = tuple(format_noise(parse_noise(noise)) for noise in plain["noises"])
    made = Study(**plain, **parts)
    _check(made)
    return made


def placed(made: Study, models: Iterable[str], data: Iterable[str]) -> Study:
    """The study with models and data from elsewhere, as NAME=PATH.

    Raises:
        UserError: A text is not of that form, or nothing has the name.
    """
    where = {flag: dict(_pair(flag, text) for text in texts) for flag, texts in (("--model", models), ("--data", data))}
    known = {"--model": {m.name for m in made.models}, "--data": set()}
    for task in made.tasks:
        known["--data"] |= {task.name, *(target.name for target in task.targets)}
    for flag, said in where.items():
        unknown = next((name for name in said if name not in known[flag]), None)
        if unknown is not None:
            raise UserError(f'{flag} "{unknown}": the study has no such name{did_you_mean(unknown, known[flag])}')
    own = where["--data"]
    tasks = tuple(
        replace(
            task,
            data={**task.data, "data": own.get(task.name, task.data["data"])},
            target=tuple({**one, "data": own.get(one["name"], one["data"])} for one in task.target),
        )
        for task in made.tasks
    )
    return replace(
        made, tasks=tasks, models=tuple(replace(m, model=where["--model"].get(m.name, m.model)) for m in made.models)
    )


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign or not path:
        raise UserError(f'{flag} "{text}": write NAME=PATH')
    return name, path


def _check(made: Study) -> None:
    for task in made.tasks:
        spec = from_dict(DataConfig, task.data, f"task {task.name}")
        if bool(task.domain_column) != bool(task.source):
            raise UserError(f'task "{task.name}": domain_column and source go together')
        if task.source and spec.split_column:
            raise UserError(f'task "{task.name}": a source domain is split by test_fraction; leave split_column out')
        _ = task.targets
    for tuning, model in itertools.product(made.tunings, made.models):
        phases = tuning.configured(model.architecture).phases()
        if any(phase.scope != "head" or phase.num_nets != 1 for phase in phases):
            raise UserError(f'tuning "{tuning.name}": only heads on features are trained; set scope = "head"')
    for name, things in (("task", made.tasks), ("tuning", made.tunings)):
        names = [thing.name for thing in things]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise UserError(f'two entries of [[{name}]] are called "{twice}"; give each a name of its own')
    keys = [(model.name, model.seed) for model in made.models]
    if len(set(keys)) < len(keys):
        raise UserError("two entries of [[model]] have the same name and seed")
    bad = next((f for f in made.fractions if not 0 < f <= 1), None)
    if bad is not None:
        raise UserError(f"fraction {bad} is outside 0 to 1")
