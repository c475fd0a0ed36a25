"""Losses of a training pass, for the metrics of its epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from cleantune.methods.protocol import LossOutput


class LossLog:
    """Losses, components and warnings of the steps of a pass."""

    def __init__(self, batch_sizes: Sequence[int], device: torch.device) -> None:
        """Make room for a pass.

        Args:
            batch_sizes: Samples of each step.
            device: Device of the losses.
        """
        self.num_samples = sum(batch_sizes)
        self.warnings: list[str] = []
        self._sizes = torch.tensor(batch_sizes, dtype=torch.float32)
        # Values are written in place: small tensors that outlive their step fragment the memory.
        self._values: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(batch_sizes), device=device))

    def record(self, step: int, loss: LossOutput) -> None:
        """Note the loss of a step, its components and its warning."""
        self._values["loss"][step] = loss.total.detach()
        for name, component in loss.components.items():
            self._values[f"loss_{name}"][step] = component.detach()
        if loss.warning is not None and loss.warning not in self.warnings:
            self.warnings.append(loss.warning)

    def means(self) -> dict[str, float]:
        """Return the mean of every value over the samples of the pass."""
        return {name: float(values.cpu() @ self._sizes / self.num_samples) for name, values in self._values.items()}
