"""Selection of a run's model: the last one, the best on validation, or the first probe where fine-tuning did harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cleantune.config.run import RunConfig
from cleantune.functional import metrics
from cleantune.pipeline.inputs import RunInputs
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

HARM_STANDARD_ERRORS = 1.0
"""Standard errors (McNemar, paired) by which fine-tuning must lose to the first probe to count as harmful."""


@dataclass(frozen=True)
class SelectedModel:
    """The model that a run keeps."""

    phase: str
    """Phase that it comes from, or `best`."""
    reason: str
    """Reason, for summary and report."""
    is_first_probe: bool = False
    """It is the first probe on the pre-trained backbone, in place of the fine-tuned model."""


def select_model(
    trainer: Trainer, inputs: RunInputs, make_models: Callable[[], list[Model]], config: RunConfig, last_phase: str
) -> SelectedModel:
    """Put the selected model into the trainer.

    With `fallback_to_probe`, the first probe is selected where the fine-tuned model is clearly worse on the noisy
    validation split. Both are measured on the same samples, so the test is paired: it counts the samples on which
    exactly one of them agrees with the given label.

    Args:
        trainer: Trainer after its last epoch.
        inputs: Inputs of the run.
        make_models: Function that makes models as before the first phase.
        config: Settings of the selection.
        last_phase: Phase that trained the last model.
    """
    if config.model_selection != "last" and "best" in trainer.candidates:
        trainer.load_candidate("best", make_models())
        return SelectedModel(
            "best", f"the epoch with the best accuracy on the validation split ({config.model_selection})"
        )
    probe = next((name for name in trainer.candidates if name != "best"), None)
    if probe is None or not config.fallback_to_probe or "validation" not in trainer.splits:
        return SelectedModel(last_phase, "the model of the last epoch")
    y = trainer.splits["validation"].y
    tuned = (trainer.probabilities("validation").argmax(1) == y).numpy()
    probed = candidate_agrees(trainer, inputs, probe)
    harm = metrics.mcnemar_z(probed, tuned)
    agreement = (
        f"on the noisy validation split it agrees with {tuned.mean():.1%} of the labels,"
        f" the first {probe} with {probed.mean():.1%}"
    )
    if harm > HARM_STANDARD_ERRORS:
        trainer.load_candidate(probe, make_models())
        reason = f"fine-tuning did harm, so the first {probe} is selected: {agreement} ({harm:.1f} standard errors)"
        return SelectedModel(probe, reason, is_first_probe=True)
    return SelectedModel(last_phase, f"the model of the last epoch: {agreement}")


def candidate_agrees(trainer: Trainer, inputs: RunInputs, candidate: str) -> np.ndarray:
    """Return where a candidate on the pre-trained backbone predicts the given label, bool [N] of validation."""
    f = torch.as_tensor(np.asarray(inputs.features["validation"]))
    p = torch.zeros(())
    for head in trainer.candidates.heads(candidate):
        with torch.no_grad():
            p = p + head.eval()(f).logits.softmax(1)
    return (p.argmax(1) == trainer.splits["validation"].y).numpy()
