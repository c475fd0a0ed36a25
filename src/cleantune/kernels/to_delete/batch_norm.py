"""BatchNorm by the statistics of the batch, as it learns, in fewer passes over memory than torch's own, on a CPU.

Two ways, each the same function with the same gradients but for rounding:

- where channels do not fill the processor's vectors, several pixels are gone through as one (`normalized`);
- behind a convolution by one pixel onto many more channels, mean and variance of what comes out follow from those of
  the few channels that go in: of y = W x the mean is W m and the variance the diagonal of W C W', with m and C mean and
  covariance of x. So the normalization goes into the weights, and the large map is written once (`expanded`).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LANES = 16
"""Numbers that a vector of the processor holds; torch's own takes up to four times as long where channels are no
multiple of it."""
_ROW = 128
"""Numbers, at the least, of a row of several pixels."""
_WORTH = 2**17
"""Numbers from which on a map is worth rows of several pixels."""
_LARGE = 2**20
"""Numbers from which on what an expansion saves is more than its covariance costs."""
_FEW = 32
"""Channels, at the most, whose covariance costs less than it saves."""
_MORE = 4
"""How many times as many channels an expansion has, at the least."""
_LIMITS: dict[type, tuple[float, float]] = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
"""Activations that cut off, and where."""


def activated(x: Tensor, activation: nn.Module | None) -> Tensor:
    """The activation, in the place of its input, which nothing else needs, where autograd would not copy that first."""
    if type(activation) is nn.ReLU6:
        return functional.hardtanh(x, 0.0, 6.0, inplace=not torch.is_grad_enabled())
    if type(activation) is nn.ReLU:
        return functional.relu_(x)
    return x if activation is None else cast(Tensor, activation(x))


def normalized(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> Tensor:
    """The normalization of a map [B, C, H, W] and the activation; as torch has it, or by rows of several pixels."""
    groups = _groups(x) if torch.is_grad_enabled() and _is_usual(norm) else 1
    if groups == 1:
        return activated(norm(x), activation)
    last = x.permute(0, 2, 3, 1)
    rows = last.reshape(-1, groups * x.shape[1])
    out = cast(Tensor, _ByRows.apply(rows, *_counted(norm)))  # type: ignore[no-untyped-call]
    return activated(out, activation).view(last.shape).permute(0, 3, 1, 2)


def expands(x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether `expanded` is the quicker way: by one pixel from few channels onto many more, over a large map.

    Args:
        x: Pixels [B, C, H, W] on a CPU, in float32 or bfloat16.
        convolution: By one pixel, in steps of one, without groups or padding.
        norm: What follows it.
    """
    channels, out = convolution.in_channels, convolution.out_channels
    large = x.numel() // channels * out >= _LARGE and channels <= _FEW and out >= _MORE * channels
    learns = large and convolution.bias is None and norm.training and _is_usual(norm)
    return learns and convolution.weight.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


def expanded(x: Tensor, weight: Tensor, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> Tensor:
    """The convolution by one pixel, the normalization that learns and the activation, in the number format of x.

    Args:
        x: Pixels [B, C, H, W] on a CPU, channels last.
        weight: [O, C, 1, 1], float32.
        norm: Of O channels.
        activation: That follows.
    """
    limits = _LIMITS.get(type(activation))
    with torch.autocast("cpu", enabled=False):
        out = cast(Tensor, _Expanded.apply(x, weight, *_counted(norm), limits))  # type: ignore[no-untyped-call]
    return out if limits is not None else activated(out, activation)


def _is_usual(norm: nn.BatchNorm2d) -> bool:
    """Whether it has weights in float32 and running statistics that move by a fixed share."""
    plain = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats
    return plain and norm.momentum is not None and norm.weight.dtype == torch.float32


def _counted(norm: nn.BatchNorm2d) -> tuple[Any, ...]:
    """What the batch is normalized by, which counts as one more."""
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps


def _lies_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie together, in a number format that has its own way, on a CPU."""
    kind = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return kind and x.is_contiguous(memory_format=torch.channels_last)


def _groups(x: Tensor) -> int:
    """How many pixels of a map go as one."""
    channels = x.shape[1]
    if x.numel() < _WORTH or channels % _LANES == 0 or not _lies_last(x):
        return 1
    fill = _LANES // math.gcd(channels, _LANES)
    groups = fill * -(-_ROW // (fill * channels))
    return groups if x.numel() // channels % groups == 0 else 1


class _ByRows(torch.autograd.Function):
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
        slopes = slopes.contiguous()
        groups, one = rows.shape[1] // channels, torch.ones(rows.shape[1])
        whole = torch.ops.aten.native_batch_norm_backward(
            slopes, rows, one, None, None, _over(mean, groups), _over(inverse, groups), True, 0.0, [False, True, True]
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
    weight, bias, mean, variance = (_over(t, groups) for t in (weight, bias, mean, variance))
    return torch.native_batch_norm(rows, weight, bias, mean, variance, False, 0.0, eps)[0]


def _over(by_channel: Tensor, groups: int) -> Tensor:
    """One number a channel, for each of so many groups of channels: `repeat`, in less of its time."""
    return by_channel.expand(groups, -1).reshape(-1)


class _Expanded(torch.autograd.Function):
    """A convolution by one pixel, BatchNorm by the statistics of the batch and an activation that cuts off.

    With the pixels less their mean, x, of covariance C, the output is y = f W x + shift, f = scale / sqrt(var + eps),
    var = diag(W C W'). The way back from var to the pixels is a product of their few channels, 2 / N x W' diag(dvar) W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        limits: tuple[float, float] | None,
    ) -> Tensor:
        channels, last = x.shape[1], x.permute(0, 2, 3, 1)
        pixels, flat = x.numel() // channels, weight.flatten(1)
        mean, centered, covariance = _moments(last.reshape(-1, channels))
        drawn = flat @ covariance
        variance = (drawn * flat).sum(1).clamp_(min=0)
        running_mean.lerp_(flat @ mean, momentum)
        running_var.lerp_(variance * (pixels / (pixels - 1)), momentum)
        inverse = torch.rsqrt(variance + eps)
        kernel = (flat * (scale * inverse)[:, None]).view_as(weight).to(x.dtype)
        centered = centered.to(x.dtype).view(last.shape).permute(0, 3, 1, 2)
        out = functional.conv2d(centered, kernel, shift.to(x.dtype))
        if limits is not None:
            functional.hardtanh_(out, *limits)
        cut = None if limits is None else out
        ctx.save_for_backward(centered, cut, kernel, flat, drawn, scale, inverse)
        ctx.limits = limits
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, out, kernel, weight, drawn, scale, inverse = ctx.saved_tensors
        if ctx.limits is not None:
            slopes = torch.ops.aten.hardtanh_backward(slopes, out, *ctx.limits)
        settings = [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1
        back, to_kernel, to_shift = torch.ops.aten.convolution_backward(
            slopes, x, kernel, *settings, [ctx.needs_input_grad[0], True, True]
        )
        to_kernel, to_shift, factor = to_kernel.flatten(1).float(), to_shift.float(), scale * inverse
        to_factor = (to_kernel * weight).sum(1)
        to_variance = to_factor * factor * inverse.square() * -0.5
        to_weight = to_kernel * factor[:, None] + drawn * (2 * to_variance)[:, None]
        if ctx.needs_input_grad[0]:
            channels, last = x.shape[1], x.permute(0, 2, 3, 1)
            pixels = x.numel() // channels
            by_covariance = (weight * to_variance[:, None]).t() @ weight * (2 / pixels)
            by_mean = (to_shift * factor) @ weight / -pixels
            moved = torch.addmm(by_mean.to(x.dtype), last.reshape(-1, channels), by_covariance.to(x.dtype))
            back += moved.view(last.shape).permute(0, 3, 1, 2)
        return back, to_weight.view_as(kernel), to_factor * inverse, to_shift, None, None, None, None, None


def _moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], distances from it [N, C] and covariance [C, C] of rows [N, C], in float32."""
    count, channels = rows.shape
    groups = max(1, _LANES // channels)
    groups = groups if count % groups == 0 else 1
    wide = rows.reshape(-1, groups * channels).float()
    mean = wide.mean(0).view(groups, channels).mean(0)
    wide = wide - _over(mean, groups)
    blocks = (wide.t() @ wide).view(groups, channels, groups, channels)
    return mean, wide, torch.diagonal(blocks, dim1=0, dim2=2).sum(-1) / count
