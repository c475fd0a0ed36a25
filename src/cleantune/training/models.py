"""Models: a backbone and a head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.backbones import Backbone
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.features.backend import InferenceBackend
from cleantune.features.precision import Precision
from cleantune.methods.protocol import Inputs, Output


class Model(nn.Module):
    """A backbone and a head; `model.head` alone takes cached features.

    Attributes:
        backbone: Pre-trained network; None where the data are features, which the model then takes.
        head: Module from features [B, D] to an Output.
        precision: Precision in which the backbone is trained; the head is always in float32.
        inference: Backend and precision of forward passes without gradients.
        compile_backbone: Compile the backbone at its first forward pass with gradients (torch.compile).
        freeze_batchnorm: Keep the running statistics of the backbone as pre-trained, in training mode too.
        num_evaluated: Samples that passed through the backbone without gradients.
        num_trained: Samples that passed through the backbone with gradients.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        head: nn.Module,
        precision: Precision | None = None,
        inference: InferenceBackend | None = None,
        *,
        compile_backbone: bool = False,
        freeze_batchnorm: bool = True,
    ) -> None:
        """Join a backbone and a head; see the attributes."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.precision = precision or Precision()
        self.inference = inference or InferenceBackend("torch", self.precision)
        self.compile_backbone = compile_backbone
        self.freeze_batchnorm = freeze_batchnorm
        self.num_evaluated = 0
        self.num_trained = 0
        self._process_group = SINGLE_PROCESS
        self._is_compiled = False
        if backbone is not None and self.precision.channels_last:
            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def forward_passes(self) -> int:
        """Return the cost so far: a sample counts 1 without gradients and 3 with them."""
        return self.num_evaluated + 3 * self.num_trained

    def forward(self, x: Inputs) -> Output:
        """Return the scores of each sample."""
        output: Output = self.head(self.features(x))
        return output

    def project(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """Return the head's projection of the input of the classifier; only where the phase has a projection."""
        projected: Tensor = self.head.project(z)  # type: ignore[operator]
        return projected

    def features(self, x: Inputs) -> Float[Tensor, "B D"]:
        """Return the features of each sample as float32; gradients flow."""
        if self.backbone is None:
            assert isinstance(x, Tensor), "a model without a backbone takes features"
            return x.float()
        first = x if isinstance(x, Tensor) else next(iter(x.values()))
        count, device = len(first), first.device.type
        if torch.is_grad_enabled():
            precision = self.precision
            self.num_trained += count
            if self.compile_backbone and not self._is_compiled:
                self.backbone.compile()
                self._is_compiled = True
        else:
            precision = self.inference.precision
            self.num_evaluated += count
        if precision.channels_last and isinstance(x, Tensor) and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with precision.autocast(device):
            features: Tensor = self.backbone(self._process_group.shard(x))
        return self._process_group.gather_shards(features.float(), count)

    @contextmanager
    def sharded_batches(self, process_group: ProcessGroup) -> Iterator[None]:
        """Divide the rows of every batch among processes inside the context, and gather their features."""
        self._process_group = process_group
        try:
            yield
        finally:
            self._process_group = SINGLE_PROCESS

    def train(self, mode: bool = True) -> Model:
        """Set training or evaluation mode, except for BatchNorm layers whose statistics are frozen."""
        super().train(mode)
        if mode and self.freeze_batchnorm and self.backbone is not None:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
