"""CE and GCE: one loss over every sample, as linear probing (scope `head`) or full fine-tuning (scope `all`).

Papers: GCE is Zhang & Sabuncu, NeurIPS 2018 (arXiv:1805.07836). The settings are those of the baselines of TURN
(arXiv:2310.17668): 20 epochs on the head, 5 epochs of full fine-tuning.

Differs from the paper:
- features are standardized before the head, in every preset;
- BatchNorm's running statistics stay as pre-trained in full fine-tuning;
- learning rates suit AdamW and the backbone instead of Table 8, which is in the preset `paper`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from cleantune.functional import losses
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Batch, Method, Output, Phase, Range, Run, Scope, Stage

PROBE = Stage(epochs=20, learning_rate=3e-4, batch_size=128, lr_reference_dim=1280, min_steps=1000)
CE_PROBE = Stage(epochs=20, learning_rate=1e-4, batch_size=128, lr_reference_dim=1280, min_steps=1000)
"""Cross-entropy fits wrong labels where GCE does not, so its learning rate is lower."""
TUNE = Stage(epochs=5, learning_rate=3e-4, batch_size=64, warmup=0.1)


@dataclass(frozen=True)
class CE:
    """Cross-entropy over every sample, the baseline that trusts every label."""

    scope: Scope = "head"
    """Trained part: the head on cached features, or backbone and head on samples."""
    probe: Stage = CE_PROBE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: CE(probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5))
    }

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase: `probe` in scope `head`, `tune` in scope `all`."""
        return (single_phase(self.scope, self.probe, self.tune, self.epoch),)

    def epoch(self, run: Run) -> None:
        """Train on every sample once."""
        run.learn(run.net, self.loss)

    def loss(self, net: Callable[..., Output], batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the batch."""
        return losses.weighted_mean(losses.cross_entropy(net(batch.views[0]).logits, batch.y), batch.weight)


@dataclass(frozen=True)
class GCE:
    """Generalized cross-entropy over every sample, which reduces the gradient of contradicted labels."""

    scope: Scope = "head"
    """Trained part: the head on cached features, or backbone and head on samples."""
    q: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.9))] = 0.7
    """Exponent of the loss: 0 is cross-entropy, 1 the mean absolute error."""
    probe: Stage = PROBE
    """Training in scope `head`."""
    tune: Stage = TUNE
    """Training in scope `all`."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: GCE(probe=paper_probe(backbone), tune=paper_tune(backbone, epochs=5))
    }

    def phases(self) -> tuple[Phase, ...]:
        """Return a single phase: `probe` in scope `head`, `tune` in scope `all`."""
        return (single_phase(self.scope, self.probe, self.tune, self.epoch),)

    def epoch(self, run: Run) -> None:
        """Train on every sample once."""
        run.learn(run.net, self.loss)

    def loss(self, net: Callable[..., Output], batch: Batch) -> Tensor:
        """Return the mean generalized cross-entropy of the batch."""
        return losses.weighted_mean(losses.gce(net(batch.views[0]).logits, batch.y, self.q), batch.weight)


def single_phase(scope: Scope, probe: Stage, tune: Stage, epoch: Callable[[Run], None]) -> Phase:
    """Return the phase of a method that trains in the same way in both scopes."""
    return Phase("probe", scope, probe, epoch) if scope == "head" else Phase("tune", scope, tune, epoch)
