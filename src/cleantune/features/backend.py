"""Program that computes the features of a frozen backbone: torch, or OpenVINO where it is installed and worthwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.errors import UserError, did_you_mean
from cleantune.features import openvino
from cleantune.features.precision import Precision, select_precision
from cleantune.methods.protocol import Inputs

BACKENDS = ("auto", "torch", "openvino")
"""Values of the setting `backend`."""
MIN_SAMPLES = 5_000
"""Samples from which on `auto` converts any network: a conversion takes two to four seconds, more if it is large."""
MIN_FLOPS = 1e12
"""Operations (FLOPs) of all samples from which on `auto` converts a network: five seconds or more on two cores."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceBackend:
    """A program for forward passes without gradients, and the precision in which it computes."""

    name: Literal["torch", "openvino"] = "torch"
    precision: Precision = Precision()
    num_streams: int = 1
    """Batches that OpenVINO computes at a time."""

    @property
    def fingerprint(self) -> str:
        """Name of what decides the bits of a feature."""
        return self.precision.fingerprint if self.name == "torch" else f"{self.precision.dtype} openvino"

    def __str__(self) -> str:
        return f"torch, {self.precision}" if self.name == "torch" else f"openvino, {self.precision.dtype}"


def select_backend(
    backbone: Backbone,
    example: Callable[[], Inputs],
    *,
    precision: str = "auto",
    backend: str = "auto",
    num_samples: int = 0,
    is_cached: Callable[[InferenceBackend], bool] = lambda _: False,
) -> InferenceBackend:
    """Return the backend for the features of a frozen backbone.

    OpenVINO is taken on a CPU where it is installed, the samples are many (`MIN_SAMPLES`, or fewer of a large network,
    `MIN_FLOPS`) and its features of the example agree with those of torch in float32.

    Args:
        backbone: In evaluation mode, on the device where it will run.
        example: Returns some samples as OpenVINO gets them: uint8 pixels [B, 3, H, W], ready inputs, or tokens. It is
            called only if the choice depends on them.
        precision: `auto`, or a number format to use as it is.
        backend: `auto`, or a program to use as it is.
        num_samples: Samples whose features are wanted.
        is_cached: Returns whether features by a backend are in the cache already; they need no conversion.

    Raises:
        UserError: A setting is unknown; or OpenVINO was asked for and is not installed, cannot convert the network, or
            the network is on a GPU.
    """
    if backend not in BACKENDS:
        raise UserError(f'unknown backend "{backend}"{did_you_mean(backend, BACKENDS)}')
    chosen = InferenceBackend("torch", select_precision(backbone, precision))
    if backend == "torch":
        return chosen
    device = next((p.device.type for p in backbone.parameters()), "cpu")
    obstacle = "OpenVINO computes on the CPU, the model is on a GPU" if device != "cpu" else ""
    if not obstacle and not openvino.is_installed():
        obstacle = "OpenVINO is not installed: pip install 'cleantune[cpu]'"
    if backend == "openvino" and obstacle:
        raise UserError(f"--backend openvino: {obstacle}; or leave --backend out")
    if obstacle or (backend == "auto" and not is_worth_converting(backbone, example, num_samples)):
        return chosen
    candidate = replace(chosen, name="openvino", num_streams=torch.get_num_threads())
    if is_cached(candidate):
        return candidate
    try:
        openvino.check_agreement(backbone, example(), candidate.precision.dtype, candidate.num_streams)
    except openvino.ConversionError as error:
        if backend == "openvino":
            raise UserError(f"--backend openvino: {error}; use --backend torch") from None
        logger.warning("%s; torch computes the features", error)
        return chosen
    return candidate


def is_worth_converting(backbone: Backbone, example: Callable[[], Inputs], num_samples: int) -> bool:
    """Return whether the features of so many samples take longer in torch than a conversion, by counts alone."""
    if num_samples >= MIN_SAMPLES:
        return True
    return num_samples > 0 and num_samples * count_flops(backbone, example()) >= MIN_FLOPS


def count_flops(backbone: Backbone, example: Inputs) -> int:
    """Return the floating-point operations of one forward pass of the first sample."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    x = {k: v[:1].to(device) for k, v in example.items()} if not isinstance(example, Tensor) else example[:1].to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(x.float() if isinstance(x, Tensor) else x)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class ComputeConfig:
    """Backend and precisions of a run, which its folder keeps for a resume."""

    inference: InferenceBackend = InferenceBackend()
    """Backend of features and evaluation passes."""
    training: Precision = Precision()
    """Precision of fine-tuning."""
    compile: bool = False
    """True if torch compiles the backbone for fine-tuning."""

    @property
    def fingerprint(self) -> str:
        """Name of what decides the bits of a run."""
        return f"{self.inference.fingerprint}, {self.training.fingerprint}{', compiled' if self.compile else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ComputeConfig:
        """Return the settings whose fields `to_dict` gave."""
        inference = fields["inference"]
        backend = InferenceBackend(inference["name"], Precision(**inference["precision"]), inference["num_streams"])
        return cls(backend, Precision(**fields["training"]), fields["compile"])
