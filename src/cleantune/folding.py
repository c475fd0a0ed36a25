"""Weights of a convolution with a normalisation of fixed statistics in them.

They are made once a batch for all its threads where something learns, once for all batches of a look.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

Kernel: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias."""
_thread = threading.local()


class Folding(nn.Module):
    """A layer of a convolution and a BatchNorm2d, which is folded into it where its statistics are fixed."""

    convolution: nn.Conv2d
    normalization: nn.BatchNorm2d | None

    def fixed(self) -> bool:
        """Whether there is a normalisation and its statistics are fixed."""
        return self.normalization is not None and not self.normalization.training

    def folding(self) -> tuple[nn.Module, ...]:
        """What the kernel is made of."""
        return tuple(part for part in (self.convolution, self.normalization) if part is not None)

    def kernel(self) -> Kernel:
        """Weight and bias of the convolution that has the normalisation in it: `given` to this thread, or made here."""
        kernels: dict[Folding, Kernel] | None = getattr(_thread, "kernels", None)
        if kernels is None:
            return self.fold()
        if self not in kernels:
            kernels[self] = self.fold()
        return kernels[self]

    def fold(self) -> Kernel:
        """The same, made here; gradients reach the weights of both."""
        weight, bias, norm = self.convolution.weight, self.convolution.bias, self.normalization
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        centre = norm.running_mean if bias is None else norm.running_mean - bias
        return weight * scale.view(-1, 1, 1, 1), torch.addcmul(norm.bias, centre, scale, value=-1)


def fold(network: nn.Module) -> dict[Folding, Kernel]:
    """The kernels of all layers inside that fold."""
    return {layer: layer.fold() for layer in network.modules() if isinstance(layer, Folding) and layer.fixed()}


@contextmanager
def given(kernels: dict[Folding, Kernel]) -> Iterator[None]:
    """In this thread the layers take these for what they would make themselves, and add what they make all the same.

    With an empty one kernels are made once for all batches inside; weights must not change meanwhile.
    """
    before = getattr(_thread, "kernels", None)
    _thread.kernels = kernels
    try:
        yield
    finally:
        _thread.kernels = before
