"""A frozen backbone as what makes features of batches, by whichever program its precision names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.data.model_inputs import to_device
from cleantune.features.openvino import OpenVINOEncoder, compiled
from cleantune.features.precision import Precision
from cleantune.methods.protocol import Inputs


class Encoder:
    """A backbone in a precision, its weights as they are: compiled for the first batch, where it is compiled at all."""

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        self.backbone, self.precision = backbone, precision
        self._network: OpenVINOEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.backbone.parameters()), torch.device("cpu"))

    def stream(self, items: Iterator[tuple[list[int], Inputs]]) -> Iterator[tuple[list[int], Tensor]]:
        """Batches with their features."""
        if self.precision.backend == "openvino":
            first = next(items, None)
            if first is not None:
                self._network = self._network or compiled(self.backbone, first[1], self.precision)
                yield from self._network.stream(chain([first], items))
            return
        device = self.device
        for batch, x in items:
            with torch.inference_mode():
                f = forward(self.backbone, x, self.precision, device).float().cpu()
            yield batch, f


def forward(backbone: Backbone, x: Inputs, precision: Precision, device: torch.device) -> Float[Tensor, "B D"]:
    """Features of a batch in a precision, on a device."""
    there = to_device(x, device)
    if isinstance(there, Tensor):
        layout = torch.channels_last if precision.channels_last and there.dim() == 4 else torch.contiguous_format
        there = there.contiguous(memory_format=layout)
    with precision.autocast(device.type):
        features: Tensor = backbone(there)
    return features
