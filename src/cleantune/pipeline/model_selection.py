"""Which of a run's models is handed over: the last, the best on validation, or, to do no harm, the probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cleantune.config.run import RunConfig
from cleantune.functional import metrics
from cleantune.pipeline.inputs import RunInputs
from cleantune.training.models import Net
from cleantune.training.trainer import Trainer

HARM_STANDARD_ERRORS = 1.0
"""Fine-tuning is clearly below the probe when it loses by more standard errors than this (McNemar, paired)."""


@dataclass(frozen=True)
class SelectedModel:
    """The model that is handed over."""

    phase: str
    """The phase it comes from, or `best`."""
    why: str
    """In a sentence, for summary and report."""
    early: bool = False
    """It is the first probe on the backbone as pre-trained, in the place of what came after."""


def deliver(
    run: Trainer, material: RunInputs, fresh: Callable[[], list[Net]], spec: RunConfig, last: str
) -> SelectedModel:
    """Put the chosen nets into the run.

    Do no harm: where fine-tuning ends clearly below the probe on the noisy validation split, the probe it began
    with is taken. Both are judged on the same samples, so the difference is judged by the samples on which exactly
    one of them agrees with the given label.

    Args:
        run: After its last epoch.
        material: Of the run.
        fresh: Makes nets as before the first phase.
        spec: Says how to choose.
        last: Name of the last phase.
    """
    if spec.model_selection != "last" and "best" in run.candidates:
        run.deliver(fresh(), "best")
        return SelectedModel(
            "best", f"the epoch with the best accuracy on the validation split ({spec.model_selection})"
        )
    probe = next((name for name in run.candidates if name != "best"), None)
    if probe is None or not spec.fallback_to_probe or "validation" not in run.splits:
        return SelectedModel(last, "the model of the last epoch")
    y = run.splits["validation"].y
    tuned = (run.probabilities("validation").argmax(1) == y).numpy()
    probed = _agrees(run, material, probe)
    lost = metrics.mcnemar_z(probed, tuned)
    words = (
        f"on the noisy validation split it agrees with {tuned.mean():.1%} of the labels,"
        f" the first {probe} with {probed.mean():.1%}"
    )
    if lost > HARM_STANDARD_ERRORS:
        run.deliver(fresh(), probe)
        why = f"fine-tuning did harm, so the first {probe} is delivered: {words} ({lost:.1f} standard errors)"
        return SelectedModel(probe, why, early=True)
    return SelectedModel(last, f"the model of the last epoch: {words}")


def _agrees(run: Trainer, material: RunInputs, candidate: str) -> np.ndarray:
    """Whether a candidate of an untouched backbone predicts the given label, by validation sample."""
    f = torch.as_tensor(np.asarray(material.features["validation"]))
    p = torch.zeros(())
    for k in range(len(run.heads[candidate])):
        head = run.candidate_head(candidate, k).eval()
        with torch.no_grad():
            p = p + head(f).logits.softmax(1)
    return (p.argmax(1) == run.splits["validation"].y).numpy()
