"""A frozen backbone as a function from batches to features, by whichever backend was selected."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.data.model_inputs import to_device
from cleantune.errors import UserError
from cleantune.features.backend import InferenceBackend
from cleantune.features.openvino import ConversionError, OpenVINOEncoder, get_encoder
from cleantune.features.precision import Precision
from cleantune.methods.protocol import Inputs


class Encoder:
    """A backbone with an inference backend; OpenVINO compiles it at the first batch."""

    def __init__(self, backbone: Backbone, backend: InferenceBackend) -> None:
        self.backbone, self.backend = backbone, backend
        self._compiled: OpenVINOEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((p.device for p in self.backbone.parameters()), torch.device("cpu"))

    def stream(self, items: Iterator[tuple[list[int], Inputs]]) -> Iterator[tuple[list[int], Float[Tensor, "B D"]]]:
        """Yield the row numbers of each batch with its features, on the CPU in float32.

        Args:
            items: Row numbers and inputs of batches; for OpenVINO images may be uint8 pixels.

        Raises:
            UserError: OpenVINO cannot convert the backbone.
        """
        if self.backend.name == "openvino":
            first = next(items, None)
            if first is not None:
                self._compiled = self._compiled or self._compile(first[1])
                yield from self._compiled.stream(chain([first], items))
            return
        device = self.device
        for rows, x in items:
            with torch.inference_mode():
                f = encode(self.backbone, x, self.backend.precision, device).float().cpu()
            yield rows, f

    def measure_throughput(self, x: Inputs) -> float:
        """Return the samples of a batch like this that the backend computes in a second."""
        num_batches = 2 * self.backend.num_streams
        for _ in self.stream(([], x) for _ in range(num_batches)):  # compiles, and brings memory and caches in
            pass
        start = time.perf_counter()
        num_samples = sum(len(f) for _, f in self.stream(([], x) for _ in range(num_batches)))
        return num_samples / (time.perf_counter() - start)

    def _compile(self, example: Inputs) -> OpenVINOEncoder:
        try:
            return get_encoder(self.backbone, example, self.backend.precision.dtype, self.backend.num_streams)
        except ConversionError as error:
            raise UserError(f"{error}: use --backend torch") from error


def encode(backbone: Backbone, x: Inputs, precision: Precision, device: torch.device) -> Float[Tensor, "B D"]:
    """Return the features of a batch by torch, on a device.

    Args:
        backbone: On the device.
        x: Images [B, 3, H, W] or tokens, on any device.
        precision: Number format and memory layout.
        device: Device that computes.
    """
    x = to_device(x, device)
    if isinstance(x, Tensor) and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last if precision.channels_last else torch.contiguous_format)
    with precision.autocast(device.type):
        features: Tensor = backbone(x)
    return features
