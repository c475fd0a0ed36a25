"""Number format and memory layout of a network, chosen by rules that depend on the machine and the network alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from cleantune.errors import UserError, did_you_mean
from cleantune.utils import cpu

Dtype = Literal["float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")
"""Values of the setting `precision`."""


@dataclass(frozen=True)
class Precision:
    """A number format for a network and a memory layout for its images."""

    dtype: Dtype = "float32"
    """Format of products and convolutions, by autocast; weights stay in float32."""
    channels_last: bool = False

    def autocast(self, device: str = "cpu") -> contextlib.AbstractContextManager[object]:
        """Return a context in which torch computes in this format on a device type."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    @property
    def fingerprint(self) -> str:
        """Name of what decides the bits of a feature."""
        return f"{self.dtype} {'channels-last' if self.channels_last else 'contiguous'}"

    def __str__(self) -> str:
        return f"{self.dtype}{', channels last' if self.channels_last else ''}"


def select_precision(network: nn.Module, setting: str = "auto", *, training: bool = False) -> Precision:
    """Return the precision that suits a network on its device.

    The format is bfloat16 where the device computes natively in it. To train a network with strided depthwise
    convolutions on a CPU the format is float32, since their gradient in bfloat16 takes twice as long in torch.
    Channels come last in convolutional networks. Processes on one machine come to the same choice.

    Args:
        network: On the device where it will run.
        setting: `auto`, or a format to use as it is.
        training: Choose for forward and backward passes instead of forward passes alone.

    Raises:
        UserError: The setting is unknown.
    """
    if setting not in PRECISIONS:
        raise UserError(f'unknown precision "{setting}"{did_you_mean(setting, PRECISIONS)}')
    device = next((p.device.type for p in network.parameters()), "cpu")
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    dtype: Dtype = "float32"
    if setting == "bfloat16":
        dtype = "bfloat16"
    elif setting == "auto" and has_native_bfloat16(device):
        is_slow = training and device == "cpu" and any(map(_is_strided_depthwise, convolutions))
        dtype = "float32" if is_slow else "bfloat16"
    return Precision(dtype, channels_last=len(convolutions) > 1)  # a transformer has one, for its patches


def has_native_bfloat16(device: str = "cpu") -> bool:
    """Return whether a device type computes natively in bfloat16 on this machine."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = cpu.cpu_info().get("flags", "").split()
    return device == "cpu" and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def _is_strided_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels > 1 and max(convolution.stride) > 1
