"""Weights of a convolution with a normalization of fixed statistics in them.

They are made once a batch for all its threads where something learns, once for all batches of a look.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
        """Whether there is a normalization and its statistics are fixed."""
        norm = self.normalization
        return norm is not None and not norm.training

    def kernel(self, dtype: torch.dtype | None = None) -> Kernel:
        """Weight and bias of the convolution that has the normalization in it: `given` to this thread, or made here.

        Args:
            dtype: Of what is made here, if not that of the weights.
        """
        kernels: dict[Folding, Kernel] | None = getattr(_thread, "kernels", None)
        if kernels is None:
            return self.fold(dtype)
        if self not in kernels:
            kernels[self] = self.fold(dtype)
        return kernels[self]

    def fold(self, dtype: torch.dtype | None = None) -> Kernel:
        """The same, made here; gradients reach the weights of both."""
        return Foldable.of([self]).fold(dtype)[self]


@dataclass(frozen=True)
class Foldable:
    """Layers that fold, and what their kernels are made of as long as nothing changes the statistics."""

    layers: list[Folding]
    parts: list[Parts]

    @classmethod
    def of(cls, layers: Sequence[Folding]) -> Foldable:
        """Layers whose statistics are fixed."""
        return cls(list(layers), [Parts.of(layer) for layer in layers])

    @classmethod
    def inside(cls, network: nn.Module) -> Foldable:
        """The layers inside that fold."""
        return cls.of([layer for layer in network.modules() if isinstance(layer, Folding) and layer.fixed()])

    def fold(self, dtype: torch.dtype | None = None) -> dict[Folding, Kernel]:
        """The kernels; gradients reach the weights of both parts of each layer.

        Args:
            dtype: Of the kernels, if not that of the weights.
        """
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not self.layers:
            return {layer: parts.fold(dtype) for layer, parts in zip(self.layers, self.parts, strict=True)}
        flat: tuple[Tensor, ...] = _Folded.apply(self.parts, dtype, *self.learned())  # type: ignore[no-untyped-call]
        count = len(self.layers)
        return self.by_layer(flat[:count], flat[count:])

    def learned(self) -> list[Tensor | None]:
        """What may learn of all layers, in their order."""
        return list(itertools.chain(*(parts.learned() for parts in self.parts)))

    def by_layer(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> dict[Folding, Kernel]:
        """These as the layers' kernels."""
        return dict(zip(self.layers, zip(weights, biases, strict=True), strict=True))


@dataclass(frozen=True)
class Parts:
    """Weight and bias of a convolution; scale, shift, mean and inverse deviation of its normalization."""

    weight: Tensor
    scale: Tensor
    shift: Tensor
    bias: Tensor | None
    mean: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, layer: Folding) -> Parts:
        """Those of a layer whose statistics are fixed."""
        convolution, norm = layer.convolution, layer.normalization
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        return cls(convolution.weight, norm.weight, norm.bias, convolution.bias, norm.running_mean, inverse)

    def learned(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What may learn."""
        return self.weight, self.scale, self.shift, self.bias

    def center(self) -> Tensor:
        """The mean of what comes out of the convolution without its bias."""
        return self.mean if self.bias is None else self.mean - self.bias

    def fold(self, dtype: torch.dtype | None) -> Kernel:
        """The kernel."""
        factor = self.scale * self.inverse
        weight = self.weight * factor.view(-1, 1, 1, 1)
        bias = torch.addcmul(self.shift, self.center(), factor, value=-1)
        return (weight, bias) if dtype is None else (weight.to(dtype), bias.to(dtype))


class Made:
    """Kernels of layers, and the way back from their gradients: what is of the channels goes as one vector.

    Attributes:
        weights: Of each layer.
        biases: Of each layer.
    """

    def __init__(self, parts: Sequence[Parts], dtype: torch.dtype | None) -> None:
        """Without autograd.

        Args:
            parts: Of the layers.
            dtype: Of the kernels, if not that of the weights.
        """
        self._parts = parts
        self._factor = torch.cat([p.scale for p in parts]) * torch.cat([p.inverse for p in parts])
        sizes = [len(p.scale) for p in parts]
        self._factors = torch.unsafe_split_with_sizes(self._factor.view(-1, 1, 1, 1), sizes)
        weights = torch._foreach_mul([p.weight for p in parts], self._factors)
        shift, center = torch.cat([p.shift for p in parts]), torch.cat([p.center() for p in parts])
        bias = torch.addcmul(shift, center, self._factor, value=-1)
        if dtype is not None:
            weights, bias = tuple(weight.to(dtype) for weight in weights), bias.to(dtype)
        self.weights: tuple[Tensor, ...] = tuple(weights)
        self.biases: tuple[Tensor, ...] = torch.unsafe_split_with_sizes(bias, sizes)

    def back(self, to_weights: Sequence[Tensor | None], to_biases: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of what may learn (`Foldable.learned`) from those of the kernels; None for layers without."""
        back: list[tuple[Tensor | None, ...]] = [(None,) * 4] * len(self._parts)
        both = list(zip(to_weights, to_biases, strict=True))
        used = [k for k, (to_kernel, to_bias) in enumerate(both) if to_kernel is not None and to_bias is not None]
        if used:
            parts, factors = [self._parts[k] for k in used], [self._factors[k] for k in used]
            sizes = [len(p.scale) for p in parts]
            to_kernel, to_bias = (list(each) for each in zip(*(both[k] for k in used), strict=True))
            to_shift = torch.cat(to_bias).to(self._factor.dtype)
            to_weight = torch._foreach_mul(to_kernel, factors)
            products = torch._foreach_mul(to_kernel, [p.weight for p in parts])
            to_factor = torch.cat([product.sum((1, 2, 3)) for product in products])
            to_factor.addcmul_(torch.cat([p.center() for p in parts]), to_shift, value=-1)
            to_scale = to_factor.mul_(torch.cat([p.inverse for p in parts]))
            split = torch.unsafe_split_with_sizes(to_scale, sizes), torch.unsafe_split_with_sizes(to_shift, sizes)
            pulls = zip(parts, factors, split[1], strict=True)
            to_own = [None if p.bias is None else factor.flatten() * slope for p, factor, slope in pulls]
            for k, *gradients in zip(used, to_weight, *split, to_own, strict=True):
                back[k] = tuple(gradients)
        return list(itertools.chain(*back))


class _Folded(torch.autograd.Function):
    """All layers as one node; autograd would have four to six for each, which take longer than what they compute."""

    @staticmethod
    def forward(ctx: Any, parts: list[Parts], dtype: torch.dtype | None, *_: Tensor | None) -> tuple[Tensor, ...]:
        ctx.made = Made(parts, dtype)
        ctx.set_materialize_grads(False)
        return *ctx.made.weights, *ctx.made.biases

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(slopes) // 2
        return None, None, *ctx.made.back(slopes[:count], slopes[count:])


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
