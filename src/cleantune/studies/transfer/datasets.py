"""Load the data of a task: training rows, and evaluation rows with their domains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cleantune.config.data import DataConfig
from cleantune.config.schema import from_dict
from cleantune.data import LabeledEvalSet, Rows, load, load_labeled_eval_set
from cleantune.data.readers import read_tables
from cleantune.data.splits import draw_fraction
from cleantune.errors import UserError
from cleantune.studies.evaluate import IN_DOMAIN, read_class_map
from cleantune.studies.transfer.study import Task

JOINED = "joined_text"
"""Column that `join_columns` adds."""


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Rows on which a classifier is evaluated."""

    data: LabeledEvalSet
    class_map: dict[str, str] | None = None
    """Labels of these data by class."""
    subset: bool = False


@dataclass(frozen=True, eq=False)
class TaskData:
    """Classes, training rows and evaluation sets of a task."""

    classes: tuple[str, ...]
    train: Rows
    """Training rows, whose labels are indices of `classes`."""
    eval_sets: tuple[EvalSet, ...]
    """Evaluation sets; the first is in domain."""

    @property
    def y(self) -> Shaped[np.ndarray, " N"]:
        """Class indices of the training rows."""
        return self.train.y

    def numbers(self) -> Shaped[np.ndarray, " N"]:
        """Return the labels of the training rows as the numbers that their class names are."""
        values: np.ndarray = labels_as_numbers(self.classes)[self.train.y]
        return values


def labels_as_numbers(names: tuple[str, ...]) -> Shaped[np.ndarray, " C"]:
    """Return class names as numbers.

    Raises:
        UserError: A name is not a number.
    """
    try:
        return np.array([float(name) for name in names])
    except ValueError as error:
        raise UserError(f"a regression needs numbers as labels: {error}") from None


def load_task(task: Task) -> TaskData:
    """Load the rows of a task.

    Raises:
        UserError: Data are missing or do not fit; the message names the task.
    """
    try:
        classes, train, in_domain = _by_domain(task) if task.source else _by_split(task)
        targets = tuple(
            EvalSet(
                load_labeled_eval_set(
                    join_columns(t.data, t.join) if t.join else t.data,
                    task.kind,
                    text=JOINED if t.join else t.text,
                    image=t.image,
                    label=t.label,
                    domain=t.domain_column,
                ),
                read_class_map(t.map),
                t.subset,
            )
            for t in task.targets
        )
    except UserError as error:
        raise UserError(f'task "{task.name}": {error}') from None
    return TaskData(classes, train, (*in_domain, *targets))


def join_columns(data: Any, columns: tuple[str, ...]) -> Any:
    """Return the same splits with the texts of several columns joined, for encoders of single texts.

    Raises:
        UserError: A file or column is missing.
    """
    import datasets
    import pyarrow as pa

    parts = {}
    for split, part in read_tables(data, []).items():
        for column in columns:
            part.need(column, "join")
        rows = zip(*(part.table.column(column).to_pylist() for column in columns), strict=True)
        texts = [" ".join("" if text is None else str(text) for text in row) for row in rows]
        table = part.table.append_column(JOINED, pa.array(texts))
        parts[split or "train"] = datasets.Dataset(table.replace_schema_metadata(None))
    return datasets.DatasetDict(parts) if len(parts) > 1 else next(iter(parts.values()))


def _by_split(task: Task) -> tuple[tuple[str, ...], Rows, tuple[EvalSet, ...]]:
    spec = from_dict(DataConfig, {"validation_fraction": 0.0, **task.data}, "data")
    if task.join:
        spec = replace(spec, data=join_columns(spec.data, task.join), text=JOINED)
    data = load(spec)
    if data.kind != task.kind:
        raise UserError(f"the data are of the kind {data.kind}, the task says {task.kind}")
    if task.eval_split not in data.rows:
        raise UserError(f"there is no {task.eval_split} split, only {', '.join(data.rows)}; set test or test_fraction")
    rows = data.rows[task.eval_split]
    domains = np.full(len(rows), IN_DOMAIN, dtype=object)
    eval_set = EvalSet(LabeledEvalSet(task.name, rows, rows.y, data.classes, domains, ()))
    return data.classes, data.rows["train"], (eval_set,)


def _by_domain(task: Task) -> tuple[tuple[str, ...], Rows, tuple[EvalSet, ...]]:
    spec = from_dict(DataConfig, task.data, "data")
    data = load_labeled_eval_set(
        spec.data, task.kind, text=spec.text, image=spec.image, label=spec.label, domain=task.domain_column
    )
    in_source = data.domains == task.source
    if not in_source.any():
        domains = ", ".join(dict.fromkeys(data.domains.tolist()))
        raise UserError(f'no row has the domain "{task.source}", only {domains}')
    source = np.flatnonzero(in_source)
    is_test = draw_fraction(data.codes[source], task.test_fraction, np.random.default_rng(spec.split_seed))
    train = replace(data.rows.take(source[~is_test]), y=data.codes[source[~is_test]])
    test = data.take(source[is_test])
    test = replace(test, domains=np.full(len(test.codes), IN_DOMAIN, dtype=object))
    return data.names, train, (EvalSet(test), EvalSet(data.take(np.flatnonzero(~in_source))))
