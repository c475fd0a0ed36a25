"""The same convolutional layers in fewer passes over memory: what fine-tuning of MobileNets and ResNets waits for.

Changes, none of which changes the function: a BatchNorm whose statistics are fixed is folded into the weights of
its convolution (gradients reach both as before), padding by hand becomes the convolution's own (but on maps smaller
than the kernel, where that is slower). To learn on a CPU, convolutions by one pixel on small maps are products of
matrices, with half of the time; in bfloat16 a depthwise convolution of stride 2 computes in float32, whose backward
pass takes a sixth to a twentieth; and a BatchNorm that learns on few channels takes several pixels as one. Without a
gradient no pixels are copied to be padded, and the activation is computed with its convolution where torch's library
for processors (oneDNN) can, or else in the convolution's place.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


def _layer(x: Tensor, layer: Folding, pads: tuple[int, int, int, int], activation: nn.Module | None = None) -> Tensor:
    """Convolution, normalisation and activation, after padding left, right, top and bottom."""
    convolution, norm = layer.convolution, layer.normalization
    if layer.fixed():
        if _only_looks():
            return _looked(x, layer, pads, activation)
        return _placed(x, *layer.kernel(), convolution, pads, activation)
    if norm is None:
        return _placed(x, convolution.weight, convolution.bias, convolution, pads, activation)
    return _normalised(_placed(x, convolution.weight, convolution.bias, convolution, pads), norm, activation)


def _activated(x: Tensor, activation: nn.Module | None) -> Tensor:
    """The activation in the place of its input, which nothing else needs."""
    if type(activation) is nn.ReLU6:
        return functional.hardtanh_(x, 0.0, 6.0)
    if type(activation) is nn.ReLU:
        return functional.relu_(x)
    return x if activation is None else cast(Tensor, activation(x))


def _normalised(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> Tensor:
    """The normalisation, which learns, and the activation; of narrow maps by rows of several pixels."""
    usual = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None
    if not usual or not torch.is_grad_enabled() or norm.weight.dtype != torch.float32 or not _is_narrow(x):
        return _activated(norm(x), activation)
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    last = x.permute(0, 2, 3, 1)
    rows = last.reshape(-1, _ROW // x.shape[1] * x.shape[1])
    given = norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
    out = cast(Tensor, _NarrowNorm.apply(rows, *given))  # type: ignore[no-untyped-call]
    return _activated(out, activation).view(last.shape).permute(0, 3, 1, 2)


def _is_narrow(x: Tensor) -> bool:
    """Whether few channels lie together, on a CPU, and groups of them fill rows."""
    count, channels, high, wide = x.shape
    fits = channels <= _NARROW and count * high * wide % (_ROW // channels) == 0
    last = x.is_contiguous(memory_format=torch.channels_last)
    return fits and last and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


_NARROW = 8
"""Channels, at the most, through which BatchNorm goes one by one."""
_ROW = 64
"""Numbers, about, of a row of several pixels."""


class _NarrowNorm(torch.autograd.Function):
    """BatchNorm by the statistics of the batch, of rows [pixels / groups, groups x channels]: several pixels as one."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        channels, pixels = len(weight), rows.numel() // len(weight)
        unmoved = torch.zeros(rows.shape[1]), torch.ones(rows.shape[1])
        own = torch.ops.aten.batch_norm_update_stats(rows, *unmoved, 0.0)
        means, variances = (t.view(-1, channels) for t in own)
        variance, mean = torch.var_mean(means, 0, correction=0)
        variance += variances.mean(0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (pixels / (pixels - 1)), momentum)
        ctx.save_for_backward(rows, weight, mean, torch.rsqrt(variance + eps))
        return _scaled(rows, weight, bias, mean, variance, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, mean, inverse = ctx.saved_tensors
        channels, pixels = len(weight), rows.numel() // len(weight)
        groups, one = rows.shape[1] // channels, torch.ones(rows.shape[1])
        slopes = slopes.contiguous()
        whole = torch.ops.aten.native_batch_norm_backward(
            slopes, rows, one, None, None, mean.repeat(groups), inverse.repeat(groups), True, 0.0, [False, True, True]
        )
        to_weight, to_bias = (t.view(groups, channels).sum(0) for t in whole[1:])
        # Of each number: a dy + b x + c, by channel.
        a = weight * inverse
        b = -a * inverse * to_weight / pixels
        c = -a * to_bias / pixels - b * mean
        none, unit = torch.zeros(channels), torch.ones(channels)
        back = _scaled(rows, b, c, none, unit, 0.0).add_(_scaled(slopes, a, none, none, unit, 0.0))
        return back, to_weight, to_bias, None, None, None, None


def _scaled(rows: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """(rows - mean) / sqrt(variance + eps) * weight + bias, by channel, in the rows' format."""
    groups = rows.shape[1] // len(weight)
    weight, bias, mean, variance = (t.repeat(groups) for t in (weight, bias, mean, variance))
    return torch.native_batch_norm(rows, weight, bias, mean, variance, False, 0.0, eps)[0]


def _looked(x: Tensor, layer: Folding, pads: tuple[int, int, int, int], activation: nn.Module | None) -> Tensor:
    """Convolution, fixed normalisation and activation where nothing learns, in as few passes over the pixels as can be.

    The kernel is made in the number format of the products.
    """
    convolution, kind = layer.convolution, _computed_in(x)
    weight, bias = layer.kernel(kind)
    left, right, top, bottom = pads
    stride, dilation, groups = convolution.stride, convolution.dilation, convolution.groups
    more, padding = (right - left, bottom - top), (top, left)
    if _tiny(x, convolution) or min(more) < 0 or (max(more) > 0 and dilation != (1, 1)):
        x, padding = functional.pad(x, pads), (0, 0)
    elif max(more) > 0:
        # As many pixels on both sides, which a kernel with zeros in front passes over; the pixels are not copied.
        weight, padding = functional.pad(weight, (more[0], 0, more[1], 0)), (bottom, right)
    name, numbers = _FUSED.get(type(activation), ("", []))
    if name and kind is not None and _fuses():
        x, weight, bias = x.to(kind), weight.to(kind), bias.to(kind)
        return _pointwise(x, weight, bias, padding, stride, dilation, groups, name, numbers, "")
    return _activated(functional.conv2d(x, weight, bias, stride, padding, dilation, groups), activation)


def _computed_in(x: Tensor) -> torch.dtype | None:
    """The number format that a look at these pixels computes in on a CPU; None where that is left to torch."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    if torch.is_autocast_enabled("cpu"):
        return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    return x.dtype


_FUSED: dict[type, tuple[str, list[float]]] = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])}
"""Activations that a convolution can compute, by what oneDNN calls them, with their numbers."""


def _pointwise(*given: object) -> Tensor:
    """A convolution with its activation by oneDNN: the operator that torch's compiler takes for both on a CPU."""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(*given))


@cache
def _fuses() -> bool:
    """Whether this torch has the operator and it does what is expected of it."""
    x, weight = torch.tensor([[[[-1.0, 3.0, 9.0]]]]), torch.ones(1, 1, 1, 1)
    try:
        found = _pointwise(x, weight, torch.zeros(1), (0, 0), (1, 1), (1, 1), 1, "hardtanh", [0.0, 6.0], "")
    except (AttributeError, RuntimeError):  # a torch without oneDNN, or with another form of it
        return False
    return found.flatten().tolist() == [0.0, 3.0, 6.0]


def _placed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: nn.Conv2d,
    pads: tuple[int, int, int, int],
    activation: nn.Module | None = None,
) -> Tensor:
    """The convolution of the padded pixels, by whichever way to it is quick, and its activation."""
    left, right, top, bottom = pads
    stride, dilation, groups = convolution.stride, convolution.dilation, convolution.groups
    if _is_product(x, convolution):
        return _product(x, weight, bias, activation)
    if stride != (1, 1) and groups == convolution.in_channels and _slow_strided(x) and _reaches(pads, convolution):
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        given = weight.bfloat16(), bias.bfloat16(), stride, dilation
        out = cast(Tensor, _StridedDepthwise.apply(x.bfloat16(), pads, *given))  # type: ignore[no-untyped-call]
    elif _tiny(x, convolution) or (left, top) != (right, bottom):
        out = functional.conv2d(_padded(x, pads, x.dtype), weight, bias, stride, 0, dilation, groups)
    else:
        out = functional.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return _activated(out, activation)


def _padded(x: Tensor, pads: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Zeros around the pixels, in a number format."""
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return cast(Tensor, _Padded.apply(x, pads, dtype))  # type: ignore[no-untyped-call]
    return functional.pad(x.to(dtype), pads)


class _Padded(torch.autograd.Function):
    """Padding and format in one pass over the pixels; torch fills all of the padded map with zeros before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pads: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
        ctx.inside, ctx.dtype, ctx.layout = _inside(x, pads), x.dtype, _layout(x)
        return _framed(x, pads, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside = gradient[ctx.inside]
        out = torch.empty(inside.shape, dtype=ctx.dtype, memory_format=ctx.layout)
        return out.copy_(inside), None, None


def _inside(x: Tensor, pads: tuple[int, int, int, int]) -> tuple[Any, ...]:
    """Where the pixels lie in the padded map."""
    left, _, top, _ = pads
    return ..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3])


def _framed(x: Tensor, pads: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Zeros around the pixels, in a number format; without a gradient."""
    (left, right, top, bottom), (count, channels, high, wide) = pads, x.shape
    shape = count, channels, top + high + bottom, left + wide + right
    out = torch.empty(shape, dtype=dtype, memory_format=_layout(x))
    out[_inside(x, pads)].copy_(x)
    for border in (out[:, :, :top], out[:, :, top + high :], out[..., :left], out[..., left + wide :]):
        border.zero_()
    return out


class _StridedDepthwise(torch.autograd.Function):
    """A strided depthwise convolution in bfloat16; the gradient of the pixels is a convolution in steps of one.

    It passes over the gradient of the output with zeros between its pixels. The library's own way to it takes eight to
    forty times as long in bfloat16, and in float32, with the conversions, twice as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pads: tuple[int, int, int, int],
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        padded = _framed(x, pads, x.dtype)
        ctx.save_for_backward(padded, weight)
        ctx.shape, ctx.pads, ctx.stride, ctx.dilation = x.shape, pads, stride, dilation
        return functional.conv2d(padded, weight, bias, stride, 0, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        channels, (down, along), (left, _, top, _) = len(weight), ctx.stride, ctx.pads
        settings = [channels], ctx.stride, [0, 0], ctx.dilation, False, [0, 0], channels
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, padded, weight, *settings, [False, ctx.needs_input_grad[2], ctx.needs_input_grad[3]]
        )
        if not ctx.needs_input_grad[0]:
            return None, None, to_weight, to_bias, None, None
        (count, _, high, wide), (reach_down, reach_along) = ctx.shape, _reach(weight, ctx.dilation)
        shape = count, channels, high + reach_down, wide + reach_along
        spread = torch.empty(shape, dtype=gradient.dtype, memory_format=_layout(padded)).zero_()
        spread[:, :, reach_down - top :: down, reach_along - left :: along][
            :, :, : gradient.shape[2], : gradient.shape[3]
        ].copy_(gradient)
        back = functional.conv2d(spread, weight.flip(2, 3), None, 1, 0, ctx.dilation, channels)
        return back, None, to_weight, to_bias, None, None


def _reach(weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    """How many pixels lie between the first and the last that a kernel sees, downwards and along."""
    return (weight.shape[2] - 1) * dilation[0], (weight.shape[3] - 1) * dilation[1]


def _reaches(pads: tuple[int, int, int, int], convolution: nn.Conv2d) -> bool:
    """Whether no window of the kernel lies in the padding alone."""
    (left, right, top, bottom), (down, along) = pads, _reach(convolution.weight, convolution.dilation)  # type: ignore[arg-type]
    return max(top, bottom) <= down and max(left, right) <= along


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _is_product(x: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether to learn a convolution as a product of matrices: by one pixel, on small maps whose channels lie last."""
    if convolution.kernel_size != (1, 1) or convolution.stride != (1, 1) or convolution.groups != 1:
        return False
    pixels, narrows = x.shape[2] * x.shape[3], convolution.in_channels >= convolution.out_channels
    small = pixels <= (64 if narrows else 16) and x.stride(1) == 1
    return small and x.device.type == "cpu" and torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None) -> Tensor:
    """The convolution by one pixel and its activation; channels lie last again."""
    count, channels, high, wide = x.shape
    rows, columns = x.permute(0, 2, 3, 1).reshape(-1, channels), weight.flatten(1).t()
    out = torch.mm(rows, columns) if bias is None else torch.addmm(bias, rows, columns)
    return _activated(out, activation).view(count, high, wide, -1).permute(0, 3, 1, 2)


def _tiny(x: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether maps are smaller than a depthwise kernel, which is slow with padding of its own."""
    return convolution.groups > 1 and min(x.shape[2:]) < min(convolution.kernel_size)


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
        return _layer(features, self, pads, self.activation)


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
        return _layer(input, self, _own(self.convolution), self.activation)


class QuickResNetShortCut(ResNetShortCut, Folding):  # type: ignore[misc]
    """Convolution and normalisation beside a block."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return _layer(input, self, _own(self.convolution))


class QuickAveragePool(nn.AdaptiveAvgPool2d):
    """The mean of all pixels, whose gradient lies in memory as the pixels do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        if self.output_size not in (1, (1, 1)) or not torch.is_grad_enabled():
            return super().forward(input)
        return input.permute(0, 2, 3, 1).mean((1, 2))[..., None, None]


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveAvgPool2d: QuickAveragePool,
    MobileNetV2ConvLayer: QuickMobileNetV2ConvLayer,
    ResNetConvLayer: QuickResNetConvLayer,
    ResNetShortCut: QuickResNetShortCut,
}
