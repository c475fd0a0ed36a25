"""Checkpoints: the state of a run after an epoch, from which it resumes bitwise identically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cleantune.distributed.fsdp import full_tensor
from cleantune.methods.protocol import Phase
from cleantune.training.candidates import strip_prefix
from cleantune.training.optim import match_memory_format
from cleantune.training.trainer import Trainer


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run: weights, optimizers, per-sample memory and generator."""

    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    """Numbers and configs that JSON can represent."""

    @classmethod
    def capture(cls, trainer: Trainer, **counters: Any) -> Checkpoint:
        """Collect the state of a run.

        Args:
            trainer: The run, after an epoch.
            **counters: Counters of the caller, such as the number of the phase.
        """
        candidates, candidate_heads = trainer.candidates.state_dict()
        tensors = {"rng": trainer.rng.get_state()}
        tensors |= _add_prefix(trainer.state.backbone_state(), "backbone.")
        tensors |= _add_prefix(candidates, "candidate.")
        tensors |= _add_prefix(trainer.ledger.state_dict(), "ledger.")
        for name, pairs in trainer.state.phase_heads.items():
            for k, (head, optimizer) in enumerate(pairs):
                tensors |= _add_prefix(head.state_dict(), f"head.{name}.{k}.")
                tensors |= _add_prefix(_optimizer_tensors(optimizer), f"optimizer.{name}.{k}.")
        tensors |= _add_prefix(trainer.label_probabilities, "label_probabilities.")
        if trainer.last_selected is not None:
            tensors["last_selected"] = trainer.last_selected
        statistics, probe_counts = trainer.probe.state_dict()
        tensors |= _add_prefix(statistics, "probe.")
        state = {
            "cost": trainer.cost.state_dict(),
            "elapsed_seconds": trainer.elapsed_seconds,
            "candidate_heads": candidate_heads,
            "probe_counts": probe_counts,
        }
        return cls(tensors, state | counters)

    def restore(self, trainer: Trainer, phases: Sequence[Phase]) -> None:
        """Return a new run to this state.

        Args:
            trainer: A run before its first phase.
            phases: Phases that had begun, the current one last.
        """
        tensors, counters = self.tensors, self.counters
        trainer.load_backbone_state(strip_prefix(tensors, "backbone."))
        for phase in phases[:-1]:
            trainer.set_up(phase)
        trainer.begin_phase(phases[-1])
        for name, pairs in trainer.state.phase_heads.items():
            for k, (head, optimizer) in enumerate(pairs):
                head.load_state_dict(strip_prefix(tensors, f"head.{name}.{k}."))
                _load_optimizer(optimizer, strip_prefix(tensors, f"optimizer.{name}.{k}."))
        trainer.probe.load_state_dict(strip_prefix(tensors, "probe."), counters["probe_counts"])
        trainer.candidates.load_state_dict(strip_prefix(tensors, "candidate."), counters["candidate_heads"])
        trainer.ledger.load_state_dict(strip_prefix(tensors, "ledger."))
        trainer.label_probabilities = strip_prefix(tensors, "label_probabilities.")
        trainer.last_selected = tensors.get("last_selected")
        trainer.rng.set_state(tensors["rng"])
        trainer.cost.load_state_dict(counters["cost"])
        trainer.add_elapsed_seconds(counters["elapsed_seconds"])


def _add_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter by number and name."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{k}.{name}": full_tensor(torch.as_tensor(v)) for k, slots in state.items() for name, v in slots.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state of every parameter; learning rates are set before each step."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        k, name = key.split(".", 1)
        state.setdefault(int(k), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    match_memory_format(optimizer)
