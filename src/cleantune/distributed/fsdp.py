"""Backbones too large to train whole on one GPU: parameters, gradients and moments divided among the ranks (FSDP).

By torch's `fully_shard`, which is what accelerate calls for FSDP 2 too; its own wrapper wants the optimizer before the
phases are known, and does not run on CPUs. While frozen, and in a checkpoint, a backbone is whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cleantune.distributed.process_group import ProcessGroup


def shard(backbone: nn.Module, ranks: ProcessGroup) -> None:
    """Divide a backbone among the ranks in place, block by block; gradients are summed. A sharded one is left."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if ranks.count == 1 or isinstance(backbone, FSDPModule):
        return
    device = next(backbone.parameters()).device.type
    mesh = init_device_mesh(device, (ranks.count,))
    for block in [*blocks(backbone), backbone]:
        fully_shard(block, mesh=mesh)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            # Every rank has the loss of the whole batch: its gradients are parts of a sum, not samples of a mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The modules that a transformers model names as not to be split, such as its layers."""
    names: set[str] = set()
    for module in backbone.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    return [module for module in backbone.modules() if type(module).__name__ in names]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; every rank must ask for it."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value laid out in memory, and divided among ranks, as the parameter is."""
    if isinstance(parameter, DTensor):
        divided: Any = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return torch.empty_like(parameter).copy_(divided)
    return torch.empty_like(parameter).copy_(value)
