"""TURN: linear probing with a robust loss, then alternating sample selection and full fine-tuning.

Paper: Ahn et al., Fine-tuning pre-trained models for robustness under noisy labels (arXiv:2310.17668), section 3.
Step 1 trains a linear head with GCE on features of the frozen backbone. Each epoch of step 2 computes the cross-entropy
of every sample under the current model, fits a two-component Gaussian mixture per class, selects the labels that are
probably clean, draws equally many of every class, and fine-tunes backbone and head on them.

The preset `paper` has the settings of the paper (Table 8). The defaults differ where a practical
implementation needs it:

- EM runs to convergence. After the 10 iterations of the preset the low component is still too wide.
- A loss at or above the mean of the high component is never clean (`enforce_monotone`): of two components with unequal
  variances the wide one wins on both far sides.
- AdamW with warm-up and cosine decay at the learning rate recommended for the backbone, batches of 64, and frozen
  BatchNorm statistics, instead of Table 8.

In all presets features are standardized before the head, and a class that keeps fewer than five labels is filled up
with its lowest losses; the paper states neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Bool
from torch import Tensor

from cleantune.functional import losses
from cleantune.functional.gmm import Normalize, fit_class_mixtures
from cleantune.functional.selection import balance_classes, parse_balance, rescue_small_classes
from cleantune.methods.paper_settings import paper_probe, paper_tune
from cleantune.methods.protocol import Method, Phase, Range, Run, Scope, Selection, Stage
from cleantune.methods.robust_loss import CE, GCE, PROBE

TUNE = Stage(epochs=4, learning_rate=3e-4, batch_size=64, warmup=0.1, lr_reference_dim=1280)


@dataclass(frozen=True)
class TURN:
    """Linear probing with GCE, then rounds of sample selection by loss mixtures and full fine-tuning."""

    scope: Scope = "all"
    """Trained part after the probe: backbone and head, or the head alone."""
    q: Annotated[float, Range(0.0, 1.0, search=Range(0.3, 0.9))] = 0.7
    """Exponent of the probe's GCE."""
    tau: Annotated[float, Range(0.0, 1.0, search=Range(0.1, 0.9))] = 0.3
    """Threshold of the clean probability above which a label is selected."""
    balance: str = "strict"
    """Class balance of the selection: strict (as many as the smallest class), quantile:RHO, floor:K or all."""
    average_posterior: bool = False
    """Average the clean probabilities of all rounds so far instead of using the last ones."""
    epochs_per_round: Annotated[int, Range(1, 20)] = 1
    """Passes over the selected samples in each round."""
    normalize: Normalize = "none"
    """Scaling of the losses before the mixture: none, or to 0..1 by class or over all samples."""
    em_iterations: Annotated[int, Range(1, 10_000, log=True)] = 200
    """Maximum number of EM iterations."""
    em_tolerance: Annotated[float, Range(0.0, 1.0)] = 1e-6
    """Change of the mean log-likelihood below which EM stops."""
    enforce_monotone: bool = True
    """Give losses at or above the mean of the high component a clean probability of 0."""
    probe: Stage = PROBE
    """Training of the head on cached features."""
    tune: Stage = TUNE
    """Fine-tuning on the selected samples; each epoch is a round and begins with a selection."""

    presets: ClassVar[Mapping[str, Callable[[str], Method]]] = {
        "paper": lambda backbone: TURN(
            em_iterations=10,
            em_tolerance=1e-2,
            enforce_monotone=False,
            probe=paper_probe(backbone),
            tune=paper_tune(backbone, epochs=4),
            epochs_per_round=5 if backbone == "vit_msn" else 1,
        )
    }

    def phases(self) -> tuple[Phase, ...]:
        """Return `probe` and `tune`."""
        return (
            Phase("probe", "head", self.probe, self.probe_epoch),
            Phase("tune", self.scope, self.tune, self.tune_epoch, head="same"),
        )

    def probe_epoch(self, run: Run) -> None:
        """Train the head for one epoch of GCE on every sample."""
        run.learn(run.net, GCE(q=self.q).loss)

    def tune_epoch(self, run: Run) -> None:
        """Select samples, then train on them with cross-entropy."""
        mask = self.select(run)
        mask = balance_classes(mask, run.y, run.classes, parse_balance(self.balance), run.rng)
        run.learn(run.net, CE().loss, Selection.of(mask), passes=self.epochs_per_round)

    def select(self, run: Run) -> Bool[Tensor, " N"]:
        """Return the mask of labels that the mixture of their class finds clean, before classes are balanced."""
        loss = run.score(lambda y, logits: losses.cross_entropy(logits, y), run.net)
        mixtures = fit_class_mixtures(
            loss, run.y, run.classes,
            normalize=self.normalize, max_iter=self.em_iterations, tol=self.em_tolerance,
        )  # fmt: skip
        p_clean = mixtures.posterior(loss, run.y, enforce_monotone=self.enforce_monotone)
        if self.average_posterior:
            p_clean = run.ledger.update_mean("p_clean", p_clean)
        run.ledger.write("p_clean", p_clean)
        return rescue_small_classes(p_clean > self.tau, loss, run.y, run.classes)
