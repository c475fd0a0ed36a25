"""Optimizers and learning rates of a stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from cleantune.distributed.process_group import is_sharded
from cleantune.methods.protocol import Phase, Stage
from cleantune.training.models import Net

MAX_HEAD_LEARNING_RATE = 1e-2
"""A head's rate is scaled up to this at the most."""

WARMUP_START = 1e-3
"""A warm-up begins at about this part of the rate: a first step of zero would be lost."""
REFERENCE_BATCH_SIZE = 64
"""Samples a step that the recommended rates of backbones are meant for."""


def make_optimizer(net: Net, phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimizer over what learns in a phase: the head, and the backbone with a rate of its own."""
    stage = phase.stage
    rate = head_learning_rate(stage, net)
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
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    return QuickAdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


class QuickAdamW(torch.optim.AdamW):
    """AdamW whose step on the CPU is its fused kernel alone.

    Torch's own step sorts the parameters by device and type, checks them and writes an entry for profiles each time,
    which takes a small head longer than the kernel. The state, and so a checkpoint, is that of torch's.
    """

    _known: dict[int, _Slots]
    """Of each group by its place, as long as the state is the one that they are of."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        """As torch's."""
        super().__init__(*given, **settings)
        self._known = {}

    def step(self, closure: Any = None) -> Any:
        """As torch's; it does the first step, and any whose gradients are not plain ones on the CPU."""
        ready = None if closure is not None else [self._ready(k) for k in range(len(self.param_groups))]
        if ready is None or None in ready:
            return super().step(closure)
        with torch.no_grad():
            for group, (slots, gradients) in zip(self.param_groups, cast(list[_Ready], ready), strict=True):
                if not gradients:
                    continue
                torch._foreach_add_(slots.steps, 1)
                torch._fused_adamw_(
                    slots.parameters, gradients, slots.first, slots.second, [],
                    slots.steps, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
                    weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
                )  # fmt: skip
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch wraps what does not say so in an entry for profiles

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Another state: a loaded or copied one."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._known = {}

    def _ready(self, k: int) -> _Ready | None:
        """What the kernel takes of a group; None: leave it to torch."""
        for find in (self._known.get, self._collected):
            slots = find(k)
            gradients = slots.gradients() if slots else None
            if slots is not None and gradients is not None:
                self._known[k] = slots
                return slots, gradients
        return None

    def _collected(self, k: int) -> _Slots | None:
        """Those of a group, if all of it that has a gradient is whole, on the CPU and has made a step."""
        parameters = self.param_groups[k]["params"]
        learning = [p for p in parameters if p.grad is not None]
        found = [self.state[p] for p in learning]
        if any(is_sharded(p) or p.device.type != "cpu" for p in learning) or any(len(slot) != 3 for slot in found):
            return None
        first, second, steps = ([slot[name] for slot in found] for name in ("exp_avg", "exp_avg_sq", "step"))
        return _Slots(learning, first, second, steps, [p for p in parameters if p.grad is None])


class _Slots(NamedTuple):
    """What AdamW keeps of the parameters of a group that have a gradient."""

    parameters: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    steps: list[Tensor]
    others: list[Tensor]
    """Parameters of the group that have none."""

    def gradients(self) -> list[Tensor] | None:
        """Those of now; None where these are not plain ones, or other parameters have one."""
        found = [(p, p.grad) for p in self.parameters]
        plain = all(g is not None and not g.is_sparse and g.dtype == p.dtype for p, g in found)
        if not plain or any(p.grad is not None for p in self.others):
            return None
        return [cast(Tensor, g) for _, g in found]


_Ready: TypeAlias = tuple[_Slots, list[Tensor]]
"""With gradients."""


def head_learning_rate(stage: Stage, net: Net) -> float:
    """The head's learning rate at the length of the features.

    AdamW moves every weight by about the rate, so a score moves by about the rate times the length: shorter features
    need a larger rate to get as far in as many steps.
    """
    if stage.lr_reference_dim == 0:
        return stage.learning_rate
    width: int = net.head.settings()["width"]  # type: ignore[operator]
    return max(stage.learning_rate, min(stage.learning_rate * stage.lr_reference_dim / width, MAX_HEAD_LEARNING_RATE))


def lr_factor(stage: Stage, share: float) -> float:
    """The part of the full learning rate at a share 0..1 of the schedule: a rise, then constant, cosine or linear."""
    if share < stage.warmup:
        return max(share / stage.warmup, WARMUP_START)
    if stage.schedule == "constant":
        return 1.0
    along = (share - stage.warmup) / (1 - stage.warmup)
    if stage.schedule == "linear":
        return 1 - along
    return 0.5 * (1 + math.cos(math.pi * along))


def set_learning_rates(optimizer: torch.optim.Optimizer, part: float) -> None:
    """Every group at a part of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * part


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's `zero_grad` without its entry in a profile, which takes a small head longer than its product."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def resolve_learning_rates(phase: Phase, backbone_learning_rate: float) -> Phase:
    """The phase with the backbone's recommended rate where none is set."""
    if phase.scope == "head":
        return phase
    rate = backbone_learning_rate_at(phase.stage, backbone_learning_rate)
    return replace(phase, stage=replace(phase.stage, backbone_learning_rate=rate))


def backbone_learning_rate_at(stage: Stage, recommended: float) -> float:
    """A backbone's rate in a stage: the one that is set, else the recommended one, to three digits, at its batch size.

    It goes with the root of the size.

    Source: the square root scaling rule of adaptive optimizers (arXiv:2205.10287).
    """
    if stage.backbone_learning_rate is not None:
        return stage.backbone_learning_rate
    return float(f"{recommended * math.sqrt(stage.batch_size / REFERENCE_BATCH_SIZE):.3g}")
