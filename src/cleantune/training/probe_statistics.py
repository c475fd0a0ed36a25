"""Losses and probabilities of a probe, averaged over its epochs: evidence of wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from cleantune.label_quality.detectors import cross_entropy_per_sample
from cleantune.methods.protocol import ProbeStatistics


class RunningMean:
    """The mean of the tensors that were added so far."""

    def __init__(self, value: Tensor | None = None, count: int = 0) -> None:
        """Begin with the mean of `count` tensors; None where there are none."""
        self.value = value
        self.count = count

    def add(self, value: Tensor) -> None:
        """Add a tensor."""
        self.count += 1
        value = value.detach().cpu()
        self.value = value.clone() if self.value is None else self.value + (value - self.value) / self.count


class ProbeRecorder:
    """Statistics of the last probe on the training split.

    Averages over the epochs of a probe separate wrong labels better than its last epoch (arXiv:2510.16211).
    """

    NAMES = ("loss", "late_loss", "late_probabilities")

    def __init__(self) -> None:
        """Begin without statistics."""
        self._means = {name: RunningMean() for name in self.NAMES}

    @property
    def statistics(self) -> ProbeStatistics | None:
        """Return the statistics of the last probe; None before its second half."""
        values = [self._means[name].value for name in self.NAMES]
        return None if any(value is None for value in values) else ProbeStatistics(*values)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Forget the last probe: another one begins."""
        self._means = {name: RunningMean() for name in self.NAMES}

    def record(self, probabilities: Float[Tensor, "N C"], y: Int[Tensor, " N"], *, is_late: bool) -> None:
        """Add an epoch.

        Args:
            probabilities: Class probabilities after the epoch.
            y: Given labels.
            is_late: The epoch is in the second half of the probe.
        """
        loss = cross_entropy_per_sample(probabilities, y)
        self._means["loss"].add(loss)
        if is_late:
            self._means["late_loss"].add(loss)
            self._means["late_probabilities"].add(probabilities)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and the counts of the means."""
        tensors = {name: mean.value for name, mean in self._means.items() if mean.value is not None}
        return tensors, {name: mean.count for name, mean in self._means.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Replace all statistics."""
        self._means = {name: RunningMean(tensors.get(name), counts[name]) for name in self.NAMES}
