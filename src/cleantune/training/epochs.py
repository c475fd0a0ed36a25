"""The driver: phases times epochs, a generator that yields one row an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from cleantune.label_quality.scores import cross_entropy_per_sample
from cleantune.methods.protocol import EpochMetrics, Method, ModelSelection, Phase
from cleantune.training.optim import resolve_learning_rates
from cleantune.training.trainer import Trainer

SELECTION_METRICS = {"noisy-val": "accuracy_validation", "clean-val": "accuracy_validation_true"}


class CheckpointStore(Protocol):
    """Where rows and state are kept between epochs: a run folder, or nothing at all."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The kept state, or None."""
        ...

    def save(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Keep the state in the place of the one before."""
        ...

    def is_checkpoint_due(self) -> bool:
        """Whether to keep a state now, within a phase; a kill loses the epochs since the last one."""
        ...

    def append_metrics(self, row: EpochMetrics) -> None:
        """Keep one more row."""
        ...


def phases(method: Method, backbone_learning_rate: float) -> tuple[Phase, ...]:
    """The phases of a method that have an epoch, with the backbone's rate stated in each."""
    return tuple(resolve_learning_rates(p, backbone_learning_rate) for p in method.phases() if p.stage.epochs > 0)


def train(
    todo: tuple[Phase, ...],
    run: Trainer,
    judge: Callable[[Trainer, dict[str, Tensor]], dict[str, Any]],
    memory: CheckpointStore | None = None,
    model_selection: ModelSelection = "last",
    look: Callable[[Trainer], dict[str, Tensor]] | None = None,
) -> Iterator[EpochMetrics]:
    """Train, epoch by epoch; (phase, epoch) is the whole program counter.

    Args:
        todo: Phases in their order.
        run: A run before its first phase. With a memory that holds a state it goes on from there, to the same bits.
        judge: Asked for numbers after each epoch, given what was looked at anyway; nothing it says changes the run.
        memory: Where each row is kept, and after it the state that counts it: at the end of a phase, and of an epoch
            where the memory says that it is due.
        choose: Unless `last`, the nets of the best epoch are kept as the run's candidate `best`.
        look: Asked for probabilities by split after each epoch; None: `remember`, which keeps evidence of wrong labels.

    Yields:
        One row an epoch, after it was kept.
    """
    saved = memory.load() if memory is not None else None
    counters: dict[str, Any] = saved[1] if saved else {"phase": 0, "epoch": -1, "rows": 0, "best": -1.0}
    first, rows, best = counters["phase"], counters["rows"], counters["best"]
    run.ranks.wait()  # nobody writes a state while another still reads the one before
    for p, phase in enumerate(todo[first:], start=first):
        if saved and p == first:
            run.resume(list(todo[: p + 1]), *saved)
        else:
            run.enter(phase)
        for epoch in range(counters["epoch"] + 1 if p == first else 0, phase.stage.epochs):
            run.epoch, run.row = epoch, {}
            phase.epoch(run)
            run.settle()
            looks = (look or remember)(run)
            row = EpochMetrics({"phase": phase.name, "round": p, "epoch": epoch} | run.row | judge(run, looks))
            row |= {"forward_passes": run.cost.forward_passes, "seconds": round(run.wall, 3)}
            if p == 0 and epoch == phase.stage.epochs - 1 and any(q.scope == "all" for q in todo[1:]):
                run.keep(phase.name)
            if model_selection != "last" and (row[SELECTION_METRICS[model_selection]] or 0.0) > best:
                best = row[SELECTION_METRICS[model_selection]]
                run.keep("best")
            rows += 1
            if memory is not None:
                run.ranks.first(partial(memory.append_metrics, row))
                if epoch == phase.stage.epochs - 1 or run.ranks.first(memory.is_checkpoint_due):
                    tensors, state = run.state()
                    state |= {"phase": p, "epoch": epoch, "rows": rows, "best": best}
                    run.ranks.first(partial(memory.save, tensors, state))
            yield row


EVIDENCE = ("loss", "late_loss", "late_p")
"""Columns of the ledgers: cross-entropy of the given label averaged over the epochs of the last phase that learned from
every sample in head scope; the same, and the probabilities, over the second half of its epochs."""


def remember(run: Trainer) -> dict[str, Tensor]:
    """The looks that cost a method nothing, as evidence of which labels are wrong.

    Averages over the epochs of a probe tell wrong labels better than its last epoch (arXiv:2510.16211). A phase that
    learned from a selection is no witness: it was told the answer. The evidence of the first probe is kept under
    `first_…`, for the case that the probe is what is delivered.

    Returns:
        Probabilities by split that were looked at.
    """
    assert run.phase is not None
    looks = {"validation": run.probabilities("validation")} if "validation" in run.splits else {}
    if run.phase.scope == "all" or run.selection is None or not bool(run.selection.mask.all()):
        return looks
    looks["train"] = run.probabilities("train")
    for split, ledger in (("train", run.ledger), ("validation", run.validation_ledger)):
        if split not in looks:
            continue
        p, y = looks[split], run.splits[split].y
        loss = cross_entropy_per_sample(p, y)
        if run.epoch == 0:
            ledger.remove(*EVIDENCE)
        ledger.update_mean("loss", loss)
        if run.epoch >= run.phase.stage.epochs // 2:
            ledger.update_mean("late_loss", loss)
            ledger.update_mean("late_p", p)
            if not run.backbone_changed:
                for name in EVIDENCE:
                    ledger.write(f"first_{name}", ledger[name])
    return looks
