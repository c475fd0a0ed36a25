"""Read a transfer study from a file: models, tasks with targets, tunings, noises, fractions, and their cells."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cleantune.config.data import DataConfig
from cleantune.config.run import build_method
from cleantune.config.schema import from_dict, to_dict
from cleantune.errors import UserError
from cleantune.methods.protocol import Method, Range
from cleantune.studies import synthetic
from cleantune.studies.grid import folder_name
from cleantune.studies.study_file import parse_fields, read_study, refuse_unknown_names

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "mcc", "pearson"]


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model."""

    name: str
    """Name in tables."""
    model: str
    """Hub id or folder of transformers; `--model NAME=PATH` overrides it. `none` for data that are features."""
    architecture: str = "resnet"
    """Architecture of the synthetic network; presets depend on it."""
    gamma: Annotated[float, Range(-1.0, 1.0)] = -1.0
    """Fraction of wrong labels in its pre-training, for figures; -1: unknown."""
    seed: Annotated[int, Range(0, 1_000_000)] = 0
    """Seed of its pre-training; models with one name and several seeds are averaged."""
    image_size: Annotated[int, Range(0, 4096)] = 0
    """Side of its images in pixels; 0: the checkpoint's own."""


@dataclass(frozen=True)
class Target:
    """Data of other domains on which a task's classifier is evaluated."""

    name: str
    """Name for `--data NAME=PATH`."""
    data: str
    """Data in any form that `fit` takes; all rows are used, or the split `test` if there is one."""
    text: str | None = None
    """Column of texts."""
    image: str | None = None
    """Column of images."""
    label: str | None = None
    """Column of labels."""
    domain_column: str | None = None
    """Column with the domain of each row."""
    join: tuple[str, ...] = ()
    """Columns of texts that are joined to one text, instead of `text`."""
    map: Any = None
    """Labels of these data by class of the source, many to one."""
    subset: bool = False
    """Restrict predictions in a domain to the classes that occur there."""


@dataclass(frozen=True)
class Task:
    """Training data, with a test split in domain and targets out of domain."""

    name: str
    """Name in tables, and for `--data NAME=PATH`."""
    data: Any
    """Fields of `DataConfig`: data, label, test, …"""
    kind: Literal["image", "text", "features"] = "image"
    """Kind of the samples."""
    join: tuple[str, ...] = ()
    """Columns of texts that are joined to one text, instead of `text`."""
    eval_split: Literal["test", "validation"] = "test"
    """Split for evaluation in domain; validation for GLUE, whose test labels are secret."""
    domain_column: str | None = None
    """Column with the domain of each row; one domain is the source, all others are targets."""
    source: str | None = None
    """Domain of the training rows."""
    test_fraction: Annotated[float, Range(0.01, 0.9)] = 0.2
    """Fraction of the source domain that is held out for the test in domain."""
    regression: bool = False
    """Labels are numbers, trained with the squared error and evaluated by Pearson's correlation."""
    metric: Metric = "accuracy"
    """Metric of the column `score`."""
    target: tuple[Any, ...] = ()
    """Tables of targets."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets as records."""
        return tuple(from_dict(Target, one, f"target of {self.name}") for one in self.target)


@dataclass(frozen=True)
class Tuning:
    """A method that trains a head on features, with its own settings."""

    name: str
    """Name in tables."""
    method: str
    """Name of the method."""
    preset: str | None = None
    """Preset of the method."""
    settings: Any = None
    """Fields that differ from the preset, by name or path."""

    def configure(self, architecture: str) -> Method:
        """Return the method for features of an architecture."""
        return build_method(self.method, self.preset, self.settings or {}, architecture, True)


@dataclass(frozen=True)
class Cell:
    """One training of a head and its evaluation on all domains."""

    model: Backbone
    task: Task
    noise: str
    fraction: float
    tuning: Tuning
    seed: int

    @property
    def folder(self) -> str:
        """Name of the cell's folder, which changes with everything that the record depends on."""
        method = self.tuning.configure(self.model.architecture)  # a new default makes a new cell
        settings = [to_dict(method), *(to_dict(phase.stage) for phase in method.phases())]
        parts = [
            to_dict(self.model),
            to_dict(self.task),
            self.noise,
            self.fraction,
            self.tuning.name,
            settings,
            self.seed,
        ]
        names = [self.model.name, self.model.seed, self.task.name, self.noise, self.tuning.name, self.seed]
        return folder_name(names, json.dumps(parts, sort_keys=True, default=str))

    @property
    def title(self) -> str:
        """Name of the cell in progress lines."""
        noise = "" if self.noise == "none" else f", {self.noise}"
        return f"{self.model.name}, {self.task.name}{noise}, {self.tuning.name}, seed {self.seed}"

    @property
    def kind(self) -> Hashable:
        """Names of model, task and tuning, and the fraction, which decide the duration."""
        return self.model.name, self.task.name, self.tuning.name, self.fraction


@dataclass(frozen=True)
class Study:
    """Models, tasks and tunings to be compared."""

    title: str
    models: tuple[Backbone, ...]
    tasks: tuple[Task, ...]
    tunings: tuple[Tuning, ...]
    seeds: tuple[int, ...] = (0,)
    """Seeds of initial weights, order, noise and fractions."""
    noises: tuple[str, ...] = ("none",)
    """Noises of the training labels."""
    fractions: tuple[float, ...] = (1.0,)
    """Fractions of the training rows, drawn by class."""
    note: str = ""
    """Remark for the reader, in a sentence."""

    def cells(self) -> list[Cell]:
        """Return all cells by model, so that each is opened once, then by seed, so that a stopped study is balanced."""
        axes = (self.models, self.seeds, self.noises, self.fractions, self.tasks, self.tunings)
        return [
            Cell(model, task, noise, fraction, tuning, seed)
            for model, seed, noise, fraction, task, tuning in itertools.product(*axes)
        ]


RECORDS: dict[str, tuple[str, type]] = {
    "model": ("models", Backbone), "task": ("tasks", Task), "tuning": ("tunings", Tuning),
}  # fmt: skip
"""Arrays of tables in a file: field of the study, and record."""
VALUES = ("title", "note", "seeds", "noises", "fractions")


def read(path: Path) -> Study:
    """Return the study of a TOML file.

    Raises:
        UserError: It is missing, not TOML, or has an unknown key or value; the message names file and key.
    """
    return read_study(path, f"there is no study {path}", study_from_dict)


def study_from_dict(table: Mapping[str, Any]) -> Study:
    """Return the study of a table; every tuning is configured once, so that no key is ignored.

    Raises:
        UserError: A key or value is unknown.
    """
    study = Study(**parse_fields(table, VALUES, RECORDS, ("title", *RECORDS)))
    _check(study)
    return study


def relocate(study: Study, models: Mapping[str, str], data: Mapping[str, str]) -> Study:
    """Return the study with other paths of models, and of the data of tasks and targets, by name.

    Raises:
        UserError: The study has no such name.
    """
    targets = [target.name for task in study.tasks for target in task.targets]
    refuse_unknown_names("--model", models, [model.name for model in study.models])
    refuse_unknown_names("--data", data, [*(task.name for task in study.tasks), *targets])
    tasks = tuple(
        replace(
            task,
            data={**task.data, "data": data.get(task.name, task.data["data"])},
            target=tuple({**target, "data": data.get(target["name"], target["data"])} for target in task.target),
        )
        for task in study.tasks
    )
    relocated = tuple(replace(model, model=models.get(model.name, model.model)) for model in study.models)
    return replace(study, tasks=tasks, models=relocated)


def make_synthetic(study: Study, folder: Path) -> Study:
    """Return the study with synthetic data and tiny random networks, which are written into a folder."""
    models = []
    for k, model in enumerate(study.models):
        is_given = model.model == "none"
        path = "none" if is_given else str(synthetic.make_network(model.architecture, folder / "models" / str(k), k))
        models.append(replace(model, model=path, image_size=0))
    tasks = tuple(_synthetic_task(task, folder / "data") for task in study.tasks)
    note = "Synthetic data and tiny random networks; the numbers mean nothing."
    return replace(study, models=tuple(models), tasks=tasks, note=note)


def _synthetic_task(task: Task, folder: Path) -> Task:
    """Return the task on synthetic tables, whose columns have the plain names."""
    domains = [task.source, "elsewhere"] if task.source else []
    path = synthetic.make_table(folder, task.kind, numeric_labels=task.regression, domains=domains)
    splits = {"test_fraction": 0.25} if task.eval_split == "test" else {"validation_fraction": 0.25}
    data: dict[str, Any] = {"data": str(path)} | ({} if task.source else splits)
    other = synthetic.make_table(folder, task.kind, numeric_labels=task.regression, domains=["here", "there"])
    targets = [
        Target(t.name, str(other), domain_column="domain" if t.domain_column else None, subset=t.subset)
        for t in task.targets
    ]
    column = "domain" if task.source else None
    return replace(task, data=data, domain_column=column, join=(), target=tuple(map(to_dict, targets)))


def _check(study: Study) -> None:
    for task in study.tasks:
        spec = from_dict(DataConfig, task.data, f"task {task.name}")
        if bool(task.domain_column) != bool(task.source):
            raise UserError(f'task "{task.name}": domain_column and source go together')
        if task.source and spec.split_column:
            raise UserError(f'task "{task.name}": a source domain is split by test_fraction; leave split_column out')
        _ = task.targets
    for tuning, model in itertools.product(study.tunings, study.models):
        phases = tuning.configure(model.architecture).phases()
        if any(phase.scope != "head" or phase.num_nets != 1 for phase in phases):
            raise UserError(f'tuning "{tuning.name}": only heads on features are trained; set scope = "head"')
    for name, entries in (("task", study.tasks), ("tuning", study.tunings)):
        names = [entry.name for entry in entries]
        duplicate = next((n for n in names if names.count(n) > 1), None)
        if duplicate:
            raise UserError(f'two entries of [[{name}]] have the name "{duplicate}"; give each its own name')
    keys = [(model.name, model.seed) for model in study.models]
    if len(set(keys)) < len(keys):
        raise UserError("two entries of [[model]] have the same name and seed")
    outside = next((f for f in study.fractions if not 0 < f <= 1), None)
    if outside is not None:
        raise UserError(f"fraction {outside} is outside 0 to 1")
