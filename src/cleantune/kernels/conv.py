"""The same convolutional layers in fewer passes over memory: what fine-tuning of MobileNets and ResNets waits for.

Changes, none of which changes the function: a BatchNorm whose statistics are fixed is folded into the weights of
its convolution (gradients reach both as before), padding by hand becomes the convolution's own (but on maps smaller
than the kernel, where that is slower). To learn on a CPU, convolutions by one pixel on small maps are products of
matrices, with half of the time; in bfloat16 the pixels' gradient of a strided depthwise convolution is a convolution in
steps of one; and a BatchNorm that learns has ways of its own (`batch_norm`). Without a gradient no pixels are
copied to be padded, and the activation is computed with its convolution where torch's library for processors (oneDNN)
can, or else in the convolution's place. Which way a layer goes is found once for each shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.mobilenet_v2.configuration_mobilenet_v2 import MobileNetV2Config
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut

from cleantune.kernels.fold_batch_norm import Folding
from cleantune.kernels.to_delete.batch_norm import activated, expanded, expands, normalized

Pads: TypeAlias = tuple[int, int, int, int]
"""Zeros to the left, to the right, above and below."""


def quicken(module: nn.Module) -> None:
    """Give every layer inside that is known its quick forward; names and weights stay."""
    for layer in module.modules():
        quick = _QUICK.get(type(layer))
        if quick is not None:
            layer.__class__ = quick
        if isinstance(layer, _Quick):
            layer.geometry = _Geometry.of(layer.convolution, layer.pads_as_tensorflow())


class _Quick(Folding):
    """A layer that is known."""

    geometry: _Geometry

    def pads_as_tensorflow(self) -> bool:
        """Whether the padding is TensorFlow's, not the convolution's."""
        return False

    def passed(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Padding, convolution, normalization and activation."""
        if self.fixed():
            if _only_looks():
                return _looked(x, self, activation)
            return _placed(x, *self.kernel(), self.geometry, activation)
        convolution, norm = self.convolution, self.normalization
        if norm is None:
            return _placed(x, convolution.weight, convolution.bias, self.geometry, activation)
        kind = _computed_in(x) if torch.is_grad_enabled() and self.geometry.goes_by_pixel() else None
        if kind is not None and expands(x, convolution, norm):
            return expanded(x.to(kind), convolution.weight, norm, activation)
        return normalized(_placed(x, convolution.weight, convolution.bias, self.geometry), norm, activation)


class _Geometry(NamedTuple):
    """What of a convolution decides how it passes over pixels of a shape; taken when the layer is made quick."""

    channels: int
    """That it reads."""
    out: int
    """That it writes."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    same: bool
    """Whether TensorFlow's padding stands in the place of `padding`."""

    @classmethod
    def of(cls, convolution: nn.Conv2d, same: bool = False) -> _Geometry:
        """That of a layer."""
        c, padding = convolution, cast(tuple[int, ...], convolution.padding)
        return cls(c.in_channels, c.out_channels, c.kernel_size, c.stride, padding, c.dilation, c.groups, same)

    def pads(self, shape: Sequence[int]) -> Pads:
        """Rows and columns of zeros around pixels [B, C, H, W]."""
        if not self.same:
            high, wide = self.padding
            return wide, wide, high, high
        return *self._along(shape[3], 1), *self._along(shape[2], 0)

    def _along(self, length: int, side: int) -> tuple[int, int]:
        """TensorFlow's padding before and after along a side, as the checkpoint's own code has it."""
        stride, kernel, dilation = self.stride[side], self.kernel[side], self.dilation[side]
        along = max(kernel - (length % stride or stride), 0)
        return along // 2 * dilation, (along - along // 2) * dilation

    def sees_pixels(self, pads: Pads) -> bool:
        """Whether no window of the kernel lies in the padding alone."""
        (left, right, top, bottom), (down, along) = pads, _reach(self.kernel, self.dilation)
        return max(top, bottom) <= down and max(left, right) <= along

    def is_wider(self, shape: Sequence[int]) -> bool:
        """Whether maps are smaller than a depthwise kernel, which is slow with padding of its own."""
        return self.groups > 1 and min(shape[2:]) < min(self.kernel)

    def is_product(self, shape: Sequence[int]) -> bool:
        """Whether it goes by one pixel over maps so small that a product of matrices learns quicker."""
        return self.goes_by_pixel() and shape[2] * shape[3] <= (64 if self.channels >= self.out else 16)

    def goes_by_pixel(self) -> bool:
        """Whether each pixel is seen once, alone, by all channels of the output."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.groups == 1 and not any(self.padding)


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """How many pixels lie between the first and the last that a kernel sees, downwards and along."""
    return (kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1]


class _Way(NamedTuple):
    """How pixels of a shape are passed over."""

    kind: Literal["product", "strided", "framed", "plain"]
    pads: Pads


def _find(shape: Sequence[int], geometry: _Geometry, last: bool, half: bool) -> _Way:
    """The quick way.

    Args:
        shape: Of the pixels.
        geometry: Of the convolution.
        last: Whether something learns on a CPU and channels lie last: convolutions may be products.
        half: Whether something learns on a CPU in bfloat16: strided depthwise layers have a way of their own.
    """
    pads = geometry.pads(shape)
    left, right, top, bottom = pads
    if last and geometry.is_product(shape):
        return _Way("product", pads)
    strided = geometry.stride != (1, 1) and geometry.groups == geometry.channels
    if half and strided and geometry.sees_pixels(pads):
        return _Way("strided", pads)
    return _Way("framed" if geometry.is_wider(shape) or (left, top) != (right, bottom) else "plain", pads)


_found = lru_cache(4096)(_find)
"""A step asks for every layer, and threads that learn wait for one another's Python ."""


def _way(x: Tensor, geometry: _Geometry) -> _Way:
    """How to pass over these pixels; remembered where something learns."""
    if not (x.is_cpu and torch.is_grad_enabled()):
        return _find(x.shape, geometry, False, False)
    # Whoever traces has shapes of his own.
    find = _find if _is_traced() or torch.compiler.is_compiling() else _found
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return find(x.shape, geometry, x.stride(1) == 1, half)


def _looked(x: Tensor, layer: _Quick, activation: nn.Module | None) -> Tensor:
    """Convolution, fixed normalization and activation where nothing learns, in as few passes over the pixels as can be.

    The kernel is made in the number format of the products.
    """
    geometry = layer.geometry
    kind, pads = _computed_in(x), geometry.pads(x.shape)
    weight, bias = layer.kernel(kind)
    left, right, top, bottom = pads
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    more, padding = (right - left, bottom - top), (top, left)
    if geometry.is_wider(x.shape) or min(more) < 0 or (max(more) > 0 and dilation != (1, 1)):
        x, padding = functional.pad(x, pads), (0, 0)
    elif max(more) > 0:
        # As many pixels on both sides, which a kernel with zeros in front passes over; the pixels are not copied.
        weight, padding = functional.pad(weight, (more[0], 0, more[1], 0)), (bottom, right)
    name, numbers = _FUSED.get(type(activation), ("", []))
    if name and kind is not None and _fuses():
        x, weight, bias = x.to(kind), weight.to(kind), bias.to(kind)
        return _pointwise(x, weight, bias, padding, stride, dilation, groups, name, numbers, "")
    return activated(functional.conv2d(x, weight, bias, stride, padding, dilation, groups), activation)


def _computed_in(x: Tensor) -> torch.dtype | None:
    """The number format that convolutions of these pixels compute in on a CPU; None where that is left to torch."""
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
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, activation: nn.Module | None = None
) -> Tensor:
    """The convolution of the padded pixels, by whichever way to it is quick, and its activation."""
    kind, pads = _way(x, geometry)
    if kind == "product":
        return _product(x, weight, bias, activation)
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    if kind == "strided":
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        given = weight.bfloat16(), bias.bfloat16(), stride, dilation
        out = cast(Tensor, _StridedDepthwise.apply(x.bfloat16(), pads, *given))  # type: ignore[no-untyped-call]
    elif kind == "framed":
        out = functional.conv2d(_padded(x, pads), weight, bias, stride, 0, dilation, groups)
    else:
        out = functional.conv2d(x, weight, bias, stride, (pads[2], pads[0]), dilation, groups)
    return activated(out, activation)


def _padded(x: Tensor, pads: Pads) -> Tensor:
    """Zeros around the pixels."""
    if x.is_cpu and x.numel() >= _LARGE and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return cast(Tensor, _Padded.apply(x, pads))  # type: ignore[no-untyped-call]
    return functional.pad(x, pads)


_LARGE = 2**20
"""Numbers from which on a map that is padded in one pass saves more than Python takes."""


class _Padded(torch.autograd.Function):
    """Padding in one pass over the pixels; torch fills all of the padded map with zeros before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pads: Pads) -> Tensor:
        ctx.inside, ctx.layout = _inside(x, pads), _layout(x)
        return _framed(x, pads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[ctx.inside].contiguous(memory_format=ctx.layout), None


def _inside(x: Tensor, pads: Pads) -> tuple[Any, ...]:
    """Where the pixels lie in the padded map."""
    left, _, top, _ = pads
    return ..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3])


def _framed(x: Tensor, pads: Pads) -> Tensor:
    """Zeros around the pixels; without a gradient."""
    if x.numel() < _LARGE:
        return torch.constant_pad_nd(x, pads)
    (left, right, top, bottom), (count, channels, high, wide) = pads, x.shape
    shape = count, channels, top + high + bottom, left + wide + right
    out = torch.empty(shape, dtype=x.dtype, memory_format=_layout(x))
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
        pads: Pads,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        padded = _framed(x, pads)
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
        (count, _, high, wide), (reach_down, reach_along) = ctx.shape, _reach(weight.shape[2:], ctx.dilation)
        shape = count, channels, high + reach_down, wide + reach_along
        spread = torch.empty(shape, dtype=gradient.dtype, memory_format=_layout(padded)).zero_()
        spread[:, :, reach_down - top :: down, reach_along - left :: along][
            :, :, : gradient.shape[2], : gradient.shape[3]
        ].copy_(gradient)
        back = functional.conv2d(spread, weight.flip(2, 3), None, 1, 0, ctx.dilation, channels)
        return back, None, to_weight, to_bias, None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None) -> Tensor:
    """The convolution by one pixel and its activation; channels lie last again."""
    count, channels, high, wide = x.shape
    rows, columns = x.permute(0, 2, 3, 1).reshape(-1, channels), weight.flatten(1).t()
    out = torch.mm(rows, columns) if bias is None else torch.addmm(bias, rows, columns)
    return activated(out, activation).view(count, high, wide, -1).permute(0, 3, 1, 2)


def _only_looks() -> bool:
    """Whether no gradient is wanted and nobody traces: OpenVINO has its own ways to pad and to save memory."""
    return not (torch.is_grad_enabled() or _is_traced())


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


class QuickMobileNetV2ConvLayer(MobileNetV2ConvLayer, _Quick):  # type: ignore[misc]
    """Padding, convolution, normalization, activation."""

    config: MobileNetV2Config
    activation: nn.Module | None

    def forward(self, features: Tensor) -> Tensor:
        """The same function."""
        return self.passed(features, self.activation)

    def pads_as_tensorflow(self) -> bool:
        """As the checkpoint's configuration says."""
        return bool(self.config.tf_padding)


class QuickResNetConvLayer(ResNetConvLayer, _Quick):  # type: ignore[misc]
    """Convolution, normalization, activation."""

    activation: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return self.passed(input, self.activation)


class QuickResNetShortCut(ResNetShortCut, _Quick):  # type: ignore[misc]
    """Convolution and normalization beside a block."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is the base class's
        """The same function."""
        return self.passed(input)


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
