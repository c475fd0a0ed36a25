"""Cost of a run: forward passes, samples, steps and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cleantune.training.models import Model


@dataclass
class Cost:
    """Counters of what a run has spent.

    The unit is one forward pass of one sample through the backbone without gradients; a sample that is trained on
    through the backbone counts 3 (forward and backward).
    """

    forward_passes: int = 0
    """Forward passes that the method asked for."""
    evaluation_forward_passes: int = 0
    """Forward passes of evaluation: validation, test, and the last pass over the training split."""
    training_samples: int = 0
    """Samples that were trained on, on cached features or through the backbone."""
    optimizer_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by section: extract, probe, score, tune, evaluate."""

    @contextmanager
    def track(
        self,
        section: str,
        counter: Literal["forward_passes", "evaluation_forward_passes"] = "forward_passes",
        models: Iterable[Model] = (),
    ) -> Iterator[None]:
        """Add the seconds and the forward passes that are spent inside the context.

        Args:
            section: Name under which the seconds are counted.
            counter: Counter of the forward passes.
            models: Models whose forward passes are counted.
        """
        start, counted = time.perf_counter(), list(models)
        before = sum(model.forward_passes for model in counted)
        yield
        spent = sum(model.forward_passes for model in counted) - before
        setattr(self, counter, getattr(self, counter) + spent)
        self.seconds[section] = self.seconds.get(section, 0.0) + time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return all counters, as JSON can represent them."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace all counters."""
        for counter in fields(self):
            setattr(self, counter.name, state[counter.name])
