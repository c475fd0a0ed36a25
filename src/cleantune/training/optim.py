"""Optimizers and learning rates of a stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from cleantune.distributed.fsdp import like
from cleantune.methods.protocol import Phase, Stage
from cleantune.training.heads import head_width
from cleantune.training.models import Model

MAX_HEAD_LEARNING_RATE = 1e-2
"""Limit up to which the learning rate of a head is scaled with the dimension of the features."""
WARMUP_START = 1e-3
"""Fraction of the learning rate at the first step of a warm-up: a step of zero would be lost."""
REFERENCE_BATCH_SIZE = 64
"""Batch size for which the recommended learning rates of backbones are meant."""


def make_optimizer(model: Model, phase: Phase) -> torch.optim.Optimizer:
    """Create the optimizer of a phase over the head and, where it learns, the backbone with its own learning rate."""
    stage = phase.stage
    learning_rate = head_learning_rate(stage, model)
    # A step shrinks weights by learning rate times decay: by the same fraction whatever the dimension of the features.
    decay = stage.weight_decay * stage.learning_rate / learning_rate
    groups: list[dict[str, Any]] = [
        {"params": list(model.head.parameters()), "lr": learning_rate, "weight_decay": decay}
    ]
    if phase.scope == "all":
        assert model.backbone is not None
        assert stage.backbone_learning_rate is not None, "set by resolve_learning_rates"
        trainable = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
        groups.append({"params": trainable, "lr": stage.backbone_learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def head_learning_rate(stage: Stage, model: Model) -> float:
    """Return the learning rate of the head for the dimension of the features.

    AdamW moves every weight by about the learning rate, so a score moves by about the rate times the dimension: shorter
    features need a larger rate to get as far in as many steps.
    """
    if stage.lr_reference_dim == 0:
        return stage.learning_rate
    scaled = stage.learning_rate * stage.lr_reference_dim / head_width(model.head)
    return max(stage.learning_rate, min(scaled, MAX_HEAD_LEARNING_RATE))


def lr_factor(stage: Stage, position: float) -> float:
    """Return the fraction of the full learning rate at a position 0..1 of the schedule.

    It rises during the warm-up; afterwards it is constant or falls to zero, as a cosine or linearly.
    """
    if position < stage.warmup:
        return max(position / stage.warmup, WARMUP_START)
    if stage.schedule == "constant":
        return 1.0
    position = (position - stage.warmup) / (1 - stage.warmup)
    if stage.schedule == "linear":
        return 1 - position
    return 0.5 * (1 + math.cos(math.pi * position))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every parameter group to a fraction of its full learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def resolve_learning_rates(phase: Phase, backbone_learning_rate: float) -> Phase:
    """Return the phase with the recommended learning rate of the backbone where it sets none."""
    if phase.scope == "head":
        return phase
    learning_rate = backbone_learning_rate_at(phase.stage, backbone_learning_rate)
    return replace(phase, stage=replace(phase.stage, backbone_learning_rate=learning_rate))


def backbone_learning_rate_at(stage: Stage, recommended: float) -> float:
    """Return the learning rate of a backbone in a stage.

    It is the one that the stage sets, else the recommended one times the square root of the relative batch size,
    rounded to three digits.

    Source: the square root scaling rule of adaptive optimizers (arXiv:2205.10287).
    """
    if stage.backbone_learning_rate is not None:
        return stage.backbone_learning_rate
    return float(f"{recommended * math.sqrt(stage.batch_size / REFERENCE_BATCH_SIZE):.3g}")


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory format of their parameters.

    A file returns contiguous tensors, but fused AdamW pairs parameters and moments by their place in memory.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = like(parameter, value)
