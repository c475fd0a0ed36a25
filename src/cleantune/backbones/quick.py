"""The same convolutional layers in fewer passes over memory: what fine-tuning of MobileNets and ResNets waits for.

Changes, none of which changes the function: a BatchNorm whose statistics are fixed is folded into the weights of
its convolution (gradients reach both as before), padding by hand becomes the convolution's own (but on maps smaller
than the kernel, where that is slower), and in bfloat16 on a CPU a depthwise convolution of stride 2 is trained as one
of stride 1 of which every other pixel is used: the backward pass of the former takes four to ten times as long. Without
a gradient an activation takes the place of what it is computed from, and no pixels are copied to be padded.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut


def quicken(module: nn.Module) -> None:
    """Give every layer inside that is known its quick forward; names and weights stay."""
    for layer in module.modules():
        quick = _QUICK.get(type(layer))
        if quick is not None:
            layer.__class__ = quick


def _convolve(x: Tensor, layer: nn.Module, pads: tuple[int, int, int, int]) -> Tensor:
    """Convolution and normalisation of a layer, after padding left, right, top and bottom."""
    convolution, norm = cast(nn.Conv2d, layer.convolution), cast("nn.BatchNorm2d | None", layer.normalization)
    weight, bias = convolution.weight, convolution.bias
    fixed = norm is not None and not norm.training
    if fixed:
        weight, bias = _folded(weight, bias, cast(nn.BatchNorm2d, norm))
    x = _strided(x, weight, bias, convolution, pads)
    return x if fixed or norm is None else cast(Tensor, norm(_gapless(x)))


def _gapless(x: Tensor) -> Tensor:
    """The same pixels without what a slice left out between them, which makes BatchNorm's training many times as slow.

    Channels stay last where they are.
    """
    last = x.stride(1) == 1 < x.shape[1]
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that has the normalisation in it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    centre = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * scale[:, None, None, None], norm.bias - centre * scale


def _strided(
    x: Tensor, weight: Tensor, bias: Tensor | None, convolution: nn.Conv2d, pads: tuple[int, int, int, int]
) -> Tensor:
    """The convolution of the padded pixels, by whichever way to it is quick."""
    left, right, top, bottom = pads
    stride, dilation, groups = convolution.stride, convolution.dilation, convolution.groups
    high, wide = max(top, bottom), max(left, right)
    if stride != (1, 1) and groups == x.shape[1] and _slow_strided(x):
        # Padded enough on both sides; the first pixel wanted is then as many in as there is too much before it.
        dense = functional.conv2d(x, weight, bias, 1, (high, wide), dilation, groups)
        wanted = dense[:, :, high - top :: stride[0], wide - left :: stride[1]]
        return wanted[:, :, : _length(x.shape[2] + top + bottom, convolution, 0),
                      : _length(x.shape[3] + left + right, convolution, 1)]  # fmt: skip
    tiny = groups > 1 and min(x.shape[2:]) < min(convolution.kernel_size)
    more = right - left, bottom - top
    if not tiny and _only_looks() and dilation == (1, 1) and max(more) > 0 <= min(more):
        # As many pixels on both sides, which a kernel with zeros in front passes over; the pixels are not copied.
        weight = functional.pad(weight, (more[0], 0, more[1], 0))
        return functional.conv2d(x, weight, bias, stride, (bottom, right), 1, groups)
    if tiny or (left, top) != (right, bottom):
        return functional.conv2d(functional.pad(x, pads), weight, bias, stride, 0, dilation, groups)
    return functional.conv2d(x, weight, bias, stride, (top, left), dilation, groups)


def _activated(x: Tensor, activation: nn.Module | None) -> Tensor:
    """The activation of what a convolution gave, in its place where no gradient needs the values before."""
    if type(activation) in (nn.ReLU, nn.ReLU6) and _only_looks():
        return functional.hardtanh_(x, 0.0, 6.0) if type(activation) is nn.ReLU6 else functional.relu_(x)
    return x if activation is None else cast(Tensor, activation(x))


def _only_looks() -> bool:
    """Whether no gradient is wanted and nobody traces: OpenVINO has its own ways to pad and to save memory."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _slow_strided(x: Tensor) -> bool:
    """Whether the backward pass of a strided depthwise convolution would be the slow one: bfloat16 on a CPU."""
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and half and torch.is_grad_enabled()


def _length(padded: int, convolution: nn.Conv2d, side: int) -> int:
    """Pixels of the output along a side."""
    reach = convolution.dilation[side] * (convolution.kernel_size[side] - 1) + 1
    return (padded - reach) // convolution.stride[side] + 1


def _own(convolution: nn.Conv2d) -> tuple[int, int, int, int]:
    """The padding that a convolution does itself."""
    high, wide = cast(tuple[int, int], convolution.padding)
    return wide, wide, high, high


class QuickMobileNetV2ConvLayer(MobileNetV2ConvLayer):  # type: ignore[misc]
    """Padding, convolution, normalisation, activation."""

    def forward(self, features: Tensor) -> Tensor:
        """The same function."""
        convolution = self.convolution
        if self.config.tf_padding:
            top, bottom = _same(features.shape[2], convolution, 0)
            left, right = _same(features.shape[3], convolution, 1)
            pads = (left, right, top, bottom)
        else:
            pads = _own(convolution)
        return _activated(_convolve(features, self, pads), self.activation)


def _same(length: int, convolution: nn.Conv2d, side: int) -> tuple[int, int]:
    """TensorFlow's padding before and after along a side, as the checkpoint's own code has it."""
    stride, kernel = convolution.stride[side], convolution.kernel_size[side]
    along = max(kernel - (length % stride or stride), 0)
    dilation = convolution.dilation[side]
    return along // 2 * dilation, (along - along // 2) * dilation


class QuickResNetConvLayer(ResNetConvLayer):  # type: ignore[misc]
    """Convolution, normalisation, activation."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return _activated(_convolve(input, self, _own(self.convolution)), self.activation)


class QuickResNetShortCut(ResNetShortCut):  # type: ignore[misc]
    """Convolution and normalisation beside a block."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return _convolve(input, self, _own(self.convolution))


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    MobileNetV2ConvLayer: QuickMobileNetV2ConvLayer,
    ResNetConvLayer: QuickResNetConvLayer,
    ResNetShortCut: QuickResNetShortCut,
}
