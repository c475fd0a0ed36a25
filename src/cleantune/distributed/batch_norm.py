"""Batch normalization over the rows of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleantune.distributed.process_group import ProcessGroup

BatchNorm = nn.modules.batchnorm._BatchNorm


class SyncBatchNorm(BatchNorm):
    """Batch normalization by the mean and variance over the rows of all processes.

    `torch.nn.SyncBatchNorm` does the same, on GPUs only.
    """

    def __init__(self, num_features: int, process_group: ProcessGroup, **settings: object) -> None:
        """Create a layer.

        Args:
            num_features: Channels C.
            process_group: Processes that share a batch.
            **settings: Settings of `torch.nn.BatchNorm2d`.
        """
        super().__init__(num_features, **settings)  # type: ignore[arg-type]
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Accept any number of dimensions, channels second."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalize by the batch of all processes in training mode, by the running statistics otherwise."""
        if not (self.training and self.track_running_stats):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = self._sum(input.new_full((1,), input.numel() / input.shape[1]))
        mean = self._sum(input.sum(axes)) / count
        centered = input - mean.view(shape)
        variance = self._sum(centered.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        normalized: Tensor = centered * (variance.view(shape) + self.eps).rsqrt()
        return normalized if self.weight is None else normalized * self.weight.view(shape) + self.bias.view(shape)

    def _sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = _AllReduce.apply(tensor, self.process_group)  # type: ignore[no-untyped-call]
        return total


class _AllReduce(torch.autograd.Function):
    """The sum over processes, whose gradients are summed over processes too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        return process_group.all_reduce(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.process_group.all_reduce(gradient), None


def convert_sync_batchnorm(module: nn.Module, process_group: ProcessGroup) -> nn.Module:
    """Return the module with every BatchNorm replaced by a `SyncBatchNorm`, as torch's function of this name does.

    Parameters and buffers stay the same objects, so optimizers stay valid. One process needs no conversion.
    """
    if process_group.world_size == 1 or isinstance(module, SyncBatchNorm):
        return module
    if isinstance(module, BatchNorm):
        settings = {name: getattr(module, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
        converted = SyncBatchNorm(module.num_features, process_group, **settings, device="meta")
        for name, parameter in module.named_parameters(recurse=False):
            converted.register_parameter(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            converted.register_buffer(name, buffer)
        return converted.train(module.training)
    for name, child in module.named_children():
        module.add_module(name, convert_sync_batchnorm(child, process_group))
    return module
