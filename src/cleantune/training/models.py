"""What learns: a head on features, and a net of backbone and head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cleantune.backbones import Backbone
from cleantune.distributed.process_group import SINGLE_PROCESS
from cleantune.features.backend import InferenceBackend
from cleantune.features.precision import Precision
from cleantune.kernels.to_delete.halves import Learning, at_rest, halved
from cleantune.methods.protocol import Inputs, Output
from cleantune.training.mlp_head import MLPHead


class LinearHead(nn.Module):
    """Standardized features into scores: `weight @ ((f - mean) / std) + bias`, in float32.

    One learning rate then fits backbones whose features differ in scale by orders of magnitude.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        init: Literal["normal", "zeros"] = "normal",
        standardize: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """A fresh head.

        Args:
            width: D, the length of a feature.
            classes: C.
            init: Weights from N(0, 0.02^2), or zeros; the bias is zero.
            standardize: Mean and deviation [D] from `mean_and_std`; None leaves features as they are.
            generator: Of the initial weights.
        """
        super().__init__()
        # Not drawn by nn.Linear itself: that would move the global generator.
        self.linear = nn.Linear(width, classes, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.linear.bias.zero_()
            if init == "normal":
                self.linear.weight.normal_(0, 0.02, generator=generator)
            else:
                self.linear.weight.zero_()
        mean, std = standardize or (torch.zeros(width), torch.ones(width))
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())

    def forward(self, f: Shaped[Tensor, "B D"]) -> Output:
        """Scores, the standardized features, and the features."""
        if torch.is_autocast_enabled(f.device.type):
            with torch.autocast(f.device.type, enabled=False):
                return self.forward(f)
        f = f.to(self.linear.weight.dtype)
        z = self.standardized(f)
        return Output(cast(Tensor, self.linear(z)), z, f)

    def standardized(self, f: Shaped[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the features with mean 0 and deviation 1 in each dimension."""
        inverse = self.std.reciprocal()
        return torch.addcmul(-self.mean * inverse, f.to(inverse.dtype), inverse)  # one pass over f in the place of two

    def raw_weights(self) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """Weight and bias of the same function on raw features, computed in float64."""
        weight = self.linear.weight.detach().double() / self.std.double()
        bias = self.linear.bias.detach().double() - weight @ self.mean.double()
        return weight.float(), bias.float()

    def settings(self) -> dict[str, Any]:
        """What `head_from_config` needs beside the state."""
        return {"width": self.linear.in_features, "classes": self.linear.out_features}

    @classmethod
    def head_from_config(cls, settings: Mapping[str, Any]) -> LinearHead:
        """A head of these sizes, whose state is then loaded."""
        return cls(settings["width"], settings["classes"], init="zeros")


class ProjectedHead(nn.Module):
    """A head with a projection beside its classifier, which contrastive losses train and predictions ignore.

    Source: UNICON's projection, Linear and BatchNorm1d without a hidden layer (arXiv:2203.14542; spec 4.5).
    """

    def __init__(self, head: nn.Module, length: int, seed: int) -> None:
        """A projection of so many numbers beside a head, its weights from the seed."""
        super().__init__()
        self.head = head
        width: int = head.settings()["width"]  # type: ignore[operator]
        linear = nn.Linear(width, length, device="meta").to_empty(device="cpu")
        bound = width**-0.5
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.projection = nn.Sequential(linear, nn.BatchNorm1d(length))

    def forward(self, f: Shaped[Tensor, "B D"]) -> Output:
        """What the head gives; the projection is asked for by `project`."""
        output: Output = self.head(f)
        return output

    def project(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """The projection of what the classifier sees."""
        projected: Tensor = self.projection(z)
        return projected

    def settings(self) -> dict[str, Any]:
        """Of the head alone."""
        settings: dict[str, Any] = self.head.settings()  # type: ignore[operator]
        return settings


def unwrap_head(head: nn.Module) -> nn.Module:
    """The head without a projection: what is delivered."""
    return head.head if isinstance(head, ProjectedHead) else head


HEADS: dict[str, type[LinearHead] | type[MLPHead]] = {"LinearHead": LinearHead, "MLPHead": MLPHead}
"""What a saved model can have as its head, by the name it is saved under; each has `settings` and `head_from_config`."""


def head_to_config(head: nn.Module) -> dict[str, Any]:
    """Kind and settings of a head without its projection, from which `head_from_config` makes one of the same shape."""
    head = unwrap_head(head)
    return {"kind": type(head).__name__, **head.settings()}  # type: ignore[operator]


def head_from_config(note: Mapping[str, Any]) -> LinearHead | MLPHead:
    """A head of a noted shape, whose state is then loaded."""
    return HEADS[note["kind"]].head_from_config(note)


class Net(nn.Module):
    """A backbone and a head; the head alone is `net.head`, which takes cached features.

    Attributes:
        backbone: Or None where the data are features: then the net takes them.
        head: Anything from features [B, D] to an Output.
        precision: In which the backbone learns; the head is always in float32.
        inference: Backend and precision of forward passes without gradients.
        compile_backbone: Compile the backbone at its first forward pass with gradients (torch.compile).
        freeze_batchnorm: Keep running statistics of the backbone as pre-trained, also in training mode.
        sharing: The ranks among which the rows of a batch are divided for the backbone.
        looked: Samples that went through the backbone without a gradient.
        trained: Samples that went through it with one.
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
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.precision = precision or Precision()
        self.inference = inference or InferenceBackend("torch", self.precision)
        self.compile_backbone = compile_backbone
        self.freeze_batchnorm = freeze_batchnorm
        self.sharing = SINGLE_PROCESS
        self.looked = 0
        self.trained = 0
        self._at_rest: bool | None = None
        self._learning: Learning | None = None
        self._compiled = False
        if backbone is not None and self.precision.channels_last:
            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Inputs) -> Output:
        """Scores of each sample."""
        output: Output = self.head(self.features(x))
        return output

    def project(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """The head's projection of what the classifier sees; only where the phase asked for one."""
        projected: Tensor = self.head.project(z)  # type: ignore[operator]
        return projected

    def features(self, x: Inputs) -> Float[Tensor, "B D"]:
        """What the head sees of each sample, as float32; gradients flow."""
        if self.backbone is None:
            assert isinstance(x, Tensor), "a net without a backbone takes features"
            return x.float()
        learns = torch.is_grad_enabled()
        chosen = self.precision if learns else self.inference.precision
        if isinstance(x, Tensor):
            count, device = len(x), x.device.type
            if chosen.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        else:
            first = next(iter(x.values()))
            count, device = len(first), first.device.type
        if learns:
            self.trained += count
        else:
            self.looked += count
        if learns and self.compile_backbone and not self._compiled:
            self.backbone.compile()
            self._compiled = True
        if learns and count > 1 and self.may_be_halved():
            self._learning = self._learning or Learning(self.backbone)
            return halved(self._learning, x, partial(chosen.autocast, device))
        with chosen.autocast(device):
            f: Tensor = self.backbone(self.sharing.part(x))
        return self.sharing.join(f.float(), count)

    def may_be_halved(self) -> bool:
        """Whether a batch that learns passes through the backbone as two halves: alone, on a CPU, where it may."""
        if self.backbone is None or self.sharing.count > 1:
            return False
        learning = next((p for p in self.backbone.parameters() if p.requires_grad), None)
        if learning is None or learning.device.type != "cpu":
            return False
        if self._at_rest is None:
            self._at_rest = at_rest(self.backbone)
        return self._at_rest

    def train(self, mode: bool = True) -> Net:
        """Training or evaluation mode, but for BatchNorm where its statistics are frozen."""
        super().train(mode)
        self._at_rest = self._learning = None
        if mode and self.freeze_batchnorm and self.backbone is not None:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
