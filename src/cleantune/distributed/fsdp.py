"""Backbones that are divided among processes: parameters, gradients and moments (FSDP).

By torch's `fully_shard`. A frozen backbone, and one in a checkpoint, is whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cleantune.distributed.process_group import ProcessGroup


def shard(backbone: nn.Module, process_group: ProcessGroup) -> None:
    """Divide a backbone among the processes in place, block by block; gradients are summed.

    A backbone that is divided already is left as it is.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if process_group.world_size == 1 or isinstance(backbone, FSDPModule):
        return
    device = next(backbone.parameters()).device.type
    mesh = init_device_mesh(device, (process_group.world_size,))
    for block in [*blocks(backbone), backbone]:
        fully_shard(block, mesh=mesh)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            # Every process computes the loss of the whole batch: gradients are parts of a sum, not samples of a mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules that a transformers model declares as not to be split, such as its layers."""
    names: set[str] = set()
    for module in backbone.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    return [module for module in backbone.modules() if type(module).__name__ in names]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be divided; every process must call this."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a copy of a value with the memory format of a parameter, divided among processes as it is."""
    if isinstance(parameter, DTensor):
        divided: Any = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return torch.empty_like(parameter).copy_(divided)
    return torch.empty_like(parameter).copy_(value)
