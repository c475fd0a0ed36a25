"""The driver: phases times epochs, a generator that yields one row an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from torch import Tensor

from cleantune.detect import margin
from cleantune.loop import Loop, with_rates
from cleantune.records import Method, Phase, Row

Choose = Literal["last", "noisy-validation", "clean-validation"]
"""Which epoch's model a run ends with: the last, or the best on a validation split by its given or its true labels."""

JUDGED_BY = {"noisy-validation": "accuracy_validation", "clean-validation": "accuracy_validation_true"}


class Memory(Protocol):
    """Where rows and state are kept between epochs: a run folder, or nothing at all."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The kept state, or None."""
        ...

    def save(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Keep the state in the place of the one before."""
        ...

    def add_row(self, row: Row) -> None:
        """Keep one more row."""
        ...


def phases(method: Method, backbone_learning_rate: float) -> tuple[Phase, ...]:
    """The phases of a method that have an epoch, with the backbone's rate stated in each."""
    return tuple(with_rates(p, backbone_learning_rate) for p in method.phases() if p.stage.epochs > 0)


def train(
    todo: tuple[Phase, ...],
    run: Loop,
    judge: Callable[[Loop, dict[str, Tensor]], dict[str, Any]],
    memory: Memory | None = None,
    choose: Choose = "last",
) -> Iterator[Row]:
    """Train, epoch by epoch; (phase, epoch) is the whole program counter.

    Args:
        todo: Phases in their order.
        run: A run before its first phase. With a memory that holds a state it goes on from there, to the same bits.
        judge: Asked for numbers after each epoch, given what was looked at anyway; nothing it says changes the run.
        memory: Where the row and then the state that counts it are kept after each epoch.
        choose: Unless `last`, the nets of the best epoch are kept as the run's candidate `best`.

    Yields:
        One row an epoch, after the state was kept.
    """
    saved = memory.load() if memory is not None else None
    counter = (saved[1]["phase"], saved[1]["epoch"]) if saved else (0, -1)
    rows = saved[1]["rows"] if saved else 0
    best = saved[1]["best"] if saved else -1.0
    for p, phase in enumerate(todo):
        if p < counter[0]:
            continue
        run.enter(phase)
        here = saved is not None and p == counter[0]
        if here and saved is not None:
            run.restore(*saved)
        for epoch in range(counter[1] + 1 if here else 0, phase.stage.epochs):
            run.epoch, run.row = epoch, {}
            phase.epoch(run)
            looks = remember(run)
            row = Row({"phase": phase.name, "epoch": epoch} | run.row | judge(run, looks))
            row |= {"forwards": run.cost.forwards, "seconds": round(sum(run.cost.seconds.values()), 3)}
            if epoch == phase.stage.epochs - 1 and p < len(todo) - 1:
                run.keep(phase.name)
            if choose != "last" and row[JUDGED_BY[choose]] > best:
                best = row[JUDGED_BY[choose]]
                run.keep("best")
            rows += 1
            if memory is not None:
                tensors, counters = run.state()
                memory.add_row(row)
                memory.save(tensors, counters | {"phase": p, "epoch": epoch, "rows": rows, "best": best})
            yield row


def remember(run: Loop) -> dict[str, Tensor]:
    """The looks that cost a method nothing, as evidence for the label issues.

    Every epoch the validation split is looked at anyway; the training split is where its features are cached.
    Averages over the epochs of a probe tell wrong labels better than its last epoch (arXiv:2510.16211).
    """
    splits = [("train", run.ledger)] if run.free_to_look else []
    if "validation" in run.splits:
        splits.append(("validation", run.validation_ledger))
    looks = {}
    for split, ledger in splits:
        p = looks[split] = run.probabilities(split)
        y = run.splits[split].y
        ledger.average("p", p)
        ledger.average("margin", margin(p, y))
        ledger.write("loss", -p.gather(1, y[:, None])[:, 0].clamp(min=1e-30).log())
    return looks
