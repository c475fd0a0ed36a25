"""The same convolutional layers in fewer passes over memory: what fine-tuning of MobileNets and ResNets waits for.

Changes, none of which changes the function: a BatchNorm whose statistics are fixed is folded into the weights of
its convolution (gradients reach both as before), padding by hand becomes the convolution's own (but on maps smaller
than the kernel, where that is slower). To learn on a CPU, convolutions by one pixel on small maps are products of
matrices, with half of the time, and in bfloat16 a depthwise convolution of stride 2 computes in float32, whose backward
pass takes a sixth to a twentieth. Without a gradient an activation takes the place of what it is computed from, and no
pixels are copied to be padded.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mobilenet_v2.configuration_mobilenet_v2 import MobileNetV2Config
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut

from cleantune.folding import Folding


def quicken(module: nn.Module) -> None:
    """Give every layer inside that is known its quick forward; names and weights stay."""
    for layer in module.modules():
        quick = _QUICK.get(type(layer))
        if quick is not None:
            layer.__class__ = quick


def _convolve(x: Tensor, layer: Folding, pads: tuple[int, int, int, int]) -> Tensor:
    """Convolution and normalisation of a layer, after padding left, right, top and bottom."""
    convolution, norm = layer.convolution, layer.normalization
    if layer.fixed():
        return _placed(x, *layer.kernel(), convolution, pads)
    x = _placed(x, convolution.weight, convolution.bias, convolution, pads)
    return x if norm is None else cast(Tensor, norm(x))


def _placed(
    x: Tensor, weight: Tensor, bias: Tensor | None, convolution: nn.Conv2d, pads: tuple[int, int, int, int]
) -> Tensor:
    """The convolution of the padded pixels, by whichever way to it is quick."""
    left, right, top, bottom = pads
    stride, dilation, groups = convolution.stride, convolution.dilation, convolution.groups
    if _is_product(x, convolution):
        return _product(x, weight, bias)
    if stride != (1, 1) and groups == x.shape[1] and _slow_strided(x):
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            padded = functional.pad(x.float(), pads)
            return functional.conv2d(padded, weight.float(), bias, stride, 0, dilation, groups).bfloat16()
    tiny = groups > 1 and min(x.shape[2:]) < min(convolution.kernel_size)
    more = right - left, bottom - top
    if not tiny and _only_looks() and dilation == (1, 1) and max(more) > 0 <= min(more):
        # As many pixels on both sides, which a kernel with zeros in front passes over; the pixels are not copied.
        weight = functional.pad(weight, (more[0], 0, more[1], 0))
        return functional.conv2d(x, weight, bias, stride, (bottom, right), 1, groups)
    if tiny or (left, top) != (right, bottom):
        return functional.conv2d(functional.pad(x, pads), weight, bias, stride, 0, dilation, groups)
    return functional.conv2d(x, weight, bias, stride, (top, left), dilation, groups)


def _is_product(x: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether to learn a convolution as a product of matrices: by one pixel, on small maps whose channels lie last."""
    if convolution.kernel_size != (1, 1) or convolution.stride != (1, 1) or convolution.groups != 1:
        return False
    pixels, narrows = x.shape[2] * x.shape[3], convolution.in_channels >= convolution.out_channels
    small = pixels <= (64 if narrows else 16) and x.stride(1) == 1
    return small and x.device.type == "cpu" and torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution by one pixel; channels lie last again."""
    return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


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


def _own(convolution: nn.Conv2d) -> tuple[int, int, int, int]:
    """The padding that a convolution does itself."""
    high, wide = cast(tuple[int, int], convolution.padding)
    return wide, wide, high, high


class QuickMobileNetV2ConvLayer(MobileNetV2ConvLayer, Folding):  # type: ignore[misc]
    """Padding, convolution, normalisation, activation."""

    config: MobileNetV2Config
    activation: nn.Module | None

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


class QuickResNetConvLayer(ResNetConvLayer, Folding):  # type: ignore[misc]
    """Convolution, normalisation, activation."""

    activation: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return _activated(_convolve(input, self, _own(self.convolution)), self.activation)


class QuickResNetShortCut(ResNetShortCut, Folding):  # type: ignore[misc]
    """Convolution and normalisation beside a block."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return _convolve(input, self, _own(self.convolution))


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    MobileNetV2ConvLayer: QuickMobileNetV2ConvLayer,
    ResNetConvLayer: QuickResNetConvLayer,
    ResNetShortCut: QuickResNetShortCut,
}
