"""The data of a task: rows to learn from, and rows to be tested on with their domains."""

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
from cleantune.studies.evaluate import IN_DOMAIN, read_map
from cleantune.studies.transfer.study import Task

JOINED = "joined_text"
"""Column that `joined` makes."""


@dataclass(frozen=True, eq=False)
class Tested:
    """Rows that a classifier is tested on."""

    data: LabeledEvalSet
    mapping: dict[str, str] | None = None
    """From classes to labels here."""
    subset: bool = False


@dataclass(frozen=True, eq=False)
class Sets:
    """What a task is made of."""

    classes: tuple[str, ...]
    train: Rows
    """Their labels are positions in `classes`."""
    tested: tuple[Tested, ...]
    """The first is in domain."""

    @property
    def y(self) -> Shaped[np.ndarray, " N"]:
        """Labels of the training rows, class numbers."""
        return self.train.y

    def numbers(self) -> Shaped[np.ndarray, " N"]:
        """Labels of the training rows as the numbers that their classes spell."""
        found: np.ndarray = numbers(self.classes)[self.train.y]
        return found


def numbers(names: tuple[str, ...]) -> Shaped[np.ndarray, " C"]:
    """Labels as numbers.

    Raises:
        UserError: One is none.
    """
    try:
        return np.array([float(name) for name in names])
    except ValueError as error:
        raise UserError(f"a regression needs numbers as labels: {error}") from None


def sets_of(task: Task) -> Sets:
    """The rows of a task.

    Raises:
        UserError: Something is missing or does not fit; the sentence names the task.
    """
    try:
        classes, train, own = _by_domain(task) if task.source else _by_split(task)
        targets = tuple(
            Tested(
                load_labeled_eval_set(
                    joined(t.data, t.join) if t.join else t.data,
                    task.kind,
                    text=JOINED if t.join else t.text,
                    image=t.image,
                    label=t.label,
                    domain=t.domain_column,
                ),
                read_map(t.map),
                t.subset,
            )
            for t in task.targets
        )
    except UserError as error:
        raise UserError(f'task "{task.name}": {error}') from None
    return Sets(classes, train, (*own, *targets))


def joined(data: Any, columns: tuple[str, ...]) -> Any:
    """The same splits with the texts of several columns as one column, which encoders of single texts can read.

    Raises:
        UserError: As `read`, and where a column is missing.
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


def _by_split(task: Task) -> tuple[tuple[str, ...], Rows, tuple[Tested, ...]]:
    spec = from_dict(DataConfig, {"validation_fraction": 0.0, **task.data}, "data")
    if task.join:
        spec = replace(spec, data=joined(spec.data, task.join), text=JOINED)
    data = load(spec)
    if data.kind != task.kind:
        raise UserError(f"the data are of the kind {data.kind}, the task says {task.kind}")
    if task.judged not in data.rows:
        raise UserError(f"there is no {task.judged} split, only {', '.join(data.rows)}; set test or test_fraction")
    rows = data.rows[task.judged]
    domains = np.full(len(rows), IN_DOMAIN, dtype=object)
    return (
        data.classes,
        data.rows["train"],
        (Tested(LabeledEvalSet(task.name, rows, rows.y, data.classes, domains, ())),),
    )


def _by_domain(task: Task) -> tuple[tuple[str, ...], Rows, tuple[Tested, ...]]:
    spec = from_dict(DataConfig, task.data, "data")
    whole = load_labeled_eval_set(
        spec.data, task.kind, text=spec.text, image=spec.image, label=spec.label, domain=task.domain_column
    )
    inside = whole.domains == task.source
    if not inside.any():
        known = ", ".join(dict.fromkeys(whole.domains.tolist()))
        raise UserError(f'no row is of the domain "{task.source}", only of {known}')
    own = np.flatnonzero(inside)
    held = draw_fraction(whole.codes[own], task.test_fraction, np.random.default_rng(spec.split_seed))
    train = replace(whole.rows.take(own[~held]), y=whole.codes[own[~held]])
    test = whole.take(own[held])
    test = replace(test, domains=np.full(len(test.codes), IN_DOMAIN, dtype=object))
    return whole.names, train, (Tested(test), Tested(whole.take(np.flatnonzero(~inside))))
