"""Optimisers and learning rates of a stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from cleantune.learner import Net
from cleantune.records import Phase, Stage

LARGEST = 1e-2
"""A head's rate is scaled up to this at the most."""

FIRST = 1e-3
"""A warm-up begins at about this part of the rate: a first step of zero would be lost."""


def make_optimiser(net: Net, phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser over what learns in a phase: the head, and the backbone with a rate of its own."""
    stage = phase.stage
    rate = head_rate(stage, net)
    # A step shrinks the weights by rate times decay: the same share at every length of the features.
    decay = stage.weight_decay * stage.learning_rate / rate
    groups: list[dict[str, Any]] = [{"params": list(net.head.parameters()), "lr": rate, "weight_decay": decay}]
    if phase.scope == "all":
        assert net.backbone is not None
        assert stage.backbone_learning_rate is not None, "phases() states it"
        learning = [parameter for parameter in net.backbone.parameters() if parameter.requires_grad]
        groups.append({"params": learning, "lr": stage.backbone_learning_rate})
    for group in groups:
        group["full_rate"] = group["lr"]
    if stage.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def head_rate(stage: Stage, net: Net) -> float:
    """The head's learning rate at the length of the features.

    AdamW moves every weight by about the rate, so a score moves by about the rate times the length: shorter features
    need a larger rate to get as far in as many steps.
    """
    if stage.rate_width == 0:
        return stage.learning_rate
    width: int = net.head.settings()["width"]  # type: ignore[operator]
    return max(stage.learning_rate, min(stage.learning_rate * stage.rate_width / width, LARGEST))


def factor(stage: Stage, share: float) -> float:
    """The part of the full learning rate at a share 0..1 of the schedule: a rise, then constant, cosine or linear."""
    if share < stage.warmup:
        return max(share / stage.warmup, FIRST)
    if stage.schedule == "constant":
        return 1.0
    along = (share - stage.warmup) / (1 - stage.warmup)
    if stage.schedule == "linear":
        return 1 - along
    return 0.5 * (1 + math.cos(math.pi * along))


def set_rates(optimiser: torch.optim.Optimizer, part: float) -> None:
    """Every group at a part of its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * part


def with_rates(phase: Phase, backbone_learning_rate: float) -> Phase:
    """The phase with the backbone's recommended rate where none is set."""
    stage = phase.stage
    if phase.scope == "head" or stage.backbone_learning_rate is not None:
        return phase
    return replace(phase, stage=replace(stage, backbone_learning_rate=backbone_learning_rate))
