"""Weights of a convolution with a normalisation of fixed statistics in them.

They are made once a batch for all its threads where something learns, once for all batches of a look.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        return fold([self])[self]


def is_strided_depthwise(convolution: nn.Conv2d) -> bool:
    """Whether each channel is convolved by itself in larger steps than one."""
    return convolution.stride != (1, 1) and convolution.groups == convolution.in_channels


def foldable(network: nn.Module) -> list[Folding]:
    """The layers inside that fold."""
    return [layer for layer in network.modules() if isinstance(layer, Folding) and layer.fixed()]


def fold(layers: Sequence[Folding], dtype: torch.dtype | None = None) -> dict[Folding, Kernel]:
    """The kernels of layers that fold; gradients reach the weights of both parts of each.

    Args:
        layers: Together they are one node of autograd.
        dtype: Of the kernels, if not that of the weights; strided depthwise convolutions keep theirs, since they
            learn in float32 (`backbones/quick.py`).
    """
    parts = [_parts(layer) for layer in layers]
    dtypes = [None if is_strided_depthwise(layer.convolution) else dtype for layer in layers]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        flat: tuple[Tensor, ...] = _Folded.apply(dtypes, *itertools.chain(*parts))  # type: ignore[no-untyped-call]
        return dict(zip(layers, zip(flat[::2], flat[1::2], strict=True), strict=True))
    return {layer: _folded(each, form) for layer, each, form in zip(layers, parts, dtypes, strict=True)}


_PARTS = 5
"""Tensors of which a kernel is made."""


def _parts(layer: Folding) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weight of the convolution; scale, shift, mean (less the convolution's bias) and inverse deviation of the norm."""
    convolution, norm = layer.convolution, layer.normalization
    assert norm is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    centre = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    return convolution.weight, norm.weight, norm.bias, centre, torch.rsqrt(norm.running_var + norm.eps)


def _folded(parts: Sequence[Tensor], dtype: torch.dtype | None) -> Kernel:
    weight, scale, shift, centre, inverse = parts
    factor = scale * inverse
    kernel = weight * factor.view(-1, 1, 1, 1), torch.addcmul(shift, centre, factor, value=-1)
    return kernel if dtype is None else (kernel[0].to(dtype), kernel[1].to(dtype))


class _Folded(torch.autograd.Function):
    """All layers as one node: autograd would have four to six for each, which take longer than what they compute."""

    @staticmethod
    def forward(ctx: Any, dtypes: Sequence[torch.dtype | None], *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.parts = [flat[first : first + _PARTS] for first in range(0, len(flat), _PARTS)]
        ctx.set_materialize_grads(False)
        return tuple(itertools.chain(*(_folded(each, form) for each, form in zip(ctx.parts, dtypes, strict=True))))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        back: list[tuple[Tensor | None, ...]] = [(None,) * _PARTS] * len(ctx.parts)
        both = list(zip(slopes[::2], slopes[1::2], strict=True))
        used = [k for k, (to_kernel, to_bias) in enumerate(both) if to_kernel is not None and to_bias is not None]
        if used:
            parts = zip(*(ctx.parts[k] for k in used), strict=True)
            weights, scales, _, centres, inverse = (list(each) for each in parts)
            to_kernel, to_bias = (list(each) for each in zip(*(both[k] for k in used), strict=True))
            to_shift = [slope.to(scale.dtype) for slope, scale in zip(to_bias, scales, strict=True)]
            factors = torch._foreach_mul(scales, inverse)
            to_factor = [product.sum((1, 2, 3)) for product in torch._foreach_mul(to_kernel, weights)]
            torch._foreach_addcmul_(to_factor, centres, to_shift, value=-1)
            to_weight = torch._foreach_mul(to_kernel, [factor.view(-1, 1, 1, 1) for factor in factors])
            to_scale = torch._foreach_mul(to_factor, inverse)
            pulls = zip(factors, to_shift, centres, strict=True)
            to_centre = [-factor * slope if centre.requires_grad else None for factor, slope, centre in pulls]
            for k, *gradients in zip(used, to_weight, to_scale, to_shift, to_centre, strict=True):
                back[k] = (*gradients, None)
        return (None, *itertools.chain(*back))


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
