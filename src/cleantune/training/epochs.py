"""The driver of a run: a generator over phases and epochs that yields the metrics of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from cleantune.methods.protocol import EpochMetrics, Method, ModelSelection, Phase
from cleantune.training.checkpoint import Checkpoint
from cleantune.training.optim import resolve_learning_rates
from cleantune.training.trainer import Trainer

SELECTION_METRICS = {"noisy-val": "accuracy_validation", "clean-val": "accuracy_validation_true"}
"""Metric that chooses the best epoch, by the setting of model selection."""


class CheckpointStore(Protocol):
    """A place for metrics and checkpoints between epochs, such as the folder of a run."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and counters of the last checkpoint, or None."""
        ...

    def save(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        ...

    def is_checkpoint_due(self) -> bool:
        """Return True if a checkpoint within a phase is due; a killed run loses the epochs since the last one."""
        ...

    def append_metrics(self, row: EpochMetrics) -> None:
        """Append the metrics of an epoch."""
        ...


def phases(method: Method, backbone_learning_rate: float) -> tuple[Phase, ...]:
    """Return the phases of a method that have epochs, with the learning rate of the backbone set in each.

    Args:
        method: The method.
        backbone_learning_rate: Recommended rate, for stages that set none.
    """
    return tuple(resolve_learning_rates(p, backbone_learning_rate) for p in method.phases() if p.stage.epochs > 0)


def train(
    todo: Sequence[Phase],
    trainer: Trainer,
    evaluate: Callable[[Trainer], Mapping[str, Any]],
    store: CheckpointStore | None = None,
    model_selection: ModelSelection = "last",
    *,
    record_probes: bool = True,
) -> Iterator[EpochMetrics]:
    """Train epoch by epoch; (phase, epoch) is the whole program counter.

    Args:
        todo: Phases in their order.
        trainer: A run before its first phase. It resumes from the checkpoint of the store, if there is one, to bitwise
            the results of an uninterrupted run.
        evaluate: Function called after each epoch, whose numbers join the metrics; it must not change the run.
        store: Store of metrics and checkpoints: a checkpoint follows the last epoch of a phase, and any epoch for which
            the store asks.
        model_selection: Unless `last`, the models of the best epoch are kept as the candidate `best`.
        record_probes: Average losses and probabilities over the epochs of probes, as evidence of wrong labels.

    Yields:
        The metrics of each epoch, after they were stored.
    """
    saved = store.load() if store is not None else None
    checkpoint = Checkpoint(*saved) if saved else None
    counters: dict[str, Any] = {"phase": 0, "epoch": -1, "rows": 0, "best": -1.0}
    if checkpoint is not None:
        counters = checkpoint.counters
    first, rows, best = counters["phase"], counters["rows"], counters["best"]
    group = trainer.process_group
    group.barrier()  # no process saves a checkpoint while another still reads the last one
    for p, phase in enumerate(todo[first:], start=first):
        if checkpoint is not None and p == first:
            checkpoint.restore(trainer, todo[: p + 1])
        else:
            trainer.begin_phase(phase)
        for epoch in range(counters["epoch"] + 1 if p == first else 0, phase.stage.epochs):
            trainer.begin_epoch(epoch)
            phase.epoch(trainer)
            trainer.check_processes_agree()
            if record_probes:
                trainer.record_probe()
            row = EpochMetrics({"phase": phase.name, "round": p, "epoch": epoch} | trainer.metrics)
            row |= dict(evaluate(trainer))
            row |= {"forward_passes": trainer.cost.forward_passes, "seconds": round(trainer.elapsed_seconds, 3)}
            is_last = epoch == phase.stage.epochs - 1
            if p == 0 and is_last and any(later.scope == "all" for later in todo[1:]):
                trainer.state.keep_candidate(phase.name)
            if model_selection != "last" and (row[SELECTION_METRICS[model_selection]] or 0.0) > best:
                best = row[SELECTION_METRICS[model_selection]]
                trainer.state.keep_candidate("best")
            rows += 1
            if store is not None:
                group.on_main(partial(store.append_metrics, row))
                if is_last or group.on_main(store.is_checkpoint_due):
                    state = Checkpoint.capture(trainer, phase=p, epoch=epoch, rows=rows, best=best)
                    group.on_main(partial(store.save, state.tensors, state.counters))
            yield row
