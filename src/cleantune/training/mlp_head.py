"""The head of NMTune: an MLP that reshapes features, and a linear classifier on what it gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cleantune.methods.protocol import MLPHeadConfig, Output


class MLPHead(nn.Module):
    """Features into reshaped features of the same length, and these into scores, in float32.

    x = (f - mean) / std, u = W2 relu(norm(W1 x)), z = scale * u + x with the residual and u without it. Standardized or
    not is decided by `mean` and `std`; `Output.features` is x, what the MLP takes, so that z is compared with its own input.
    While it learns, dropout sets dimensions of x to zero and scales up the rest.

    Source: NMTune (arXiv:2309.17002), section 3.1, and the authors' code; nmtune spec 3.1. Differs: dropout, which
    neither has.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        classes: int,
        mlp: MLPHeadConfig,
        *,
        standardize: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """A fresh head: the MLP as torch initializes linear layers, the classifier by the mlp, its bias at zero.

        Args:
            width: D, the length of a feature.
            classes: C.
            mlp: The MLP.
            standardize: Mean and deviation [D]; None, or a mlp without scaling, leaves features as they are.
            generator: Of the initial weights; the global generator is not touched.
        """
        super().__init__()
        self.mlp = mlp
        hidden = round(mlp.ratio * width)
        sizes = [width, *[hidden] * mlp.layers]
        parts: list[nn.Module] = []
        for one, two in itertools.pairwise(sizes):
            parts.append(_linear(one, two, 1 / math.sqrt(one), generator))
            parts += [nn.BatchNorm1d(two)] if mlp.norm == "batch" else []
            parts.append(nn.ReLU())
        parts.append(_linear(sizes[-1], width, 1 / math.sqrt(sizes[-1]), generator))
        self.layers = nn.Sequential(*parts)
        self.scale = nn.Parameter(torch.full((width,), mlp.residual_scale)) if mlp.residual else None
        bound = math.sqrt(6 / width) if mlp.classifier == "kaiming" else 0.0
        self.linear = _linear(width, classes, bound, generator)
        with torch.no_grad():
            self.linear.bias.zero_()
        mean, std = standardize if standardize and mlp.standardize else (torch.zeros(width), torch.ones(width))
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())
        self.luck: torch.Generator | None = None

    def reseed(self, seed: int) -> None:
        """Draw dropout from this seed on. Ranks that see the same rows must drop the same."""
        self.luck = torch.Generator(self.mean.device).manual_seed(seed)

    def forward(self, f: Shaped[Tensor, "B D"]) -> Output:
        """Scores, the reshaped features, and what they were made of."""
        with torch.autocast(f.device.type, enabled=False):
            x = (f.to(self.linear.weight.dtype) - self.mean) / self.std
            if self.training and self.mlp.dropout:
                seen = torch.rand(x.shape, generator=self.luck, device=x.device) >= self.mlp.dropout
                x = x * seen / (1 - self.mlp.dropout)
            z: Float[Tensor, "B D"] = self.layers(x)
            if self.scale is not None:
                z = self.scale * z + x
            return Output(self.linear(z), z, x)

    def settings(self) -> dict[str, Any]:
        """What `head_from_config` needs beside the state."""
        width, classes = self.linear.in_features, self.linear.out_features
        return {"width": width, "classes": classes, "mlp": asdict(self.mlp)}

    @classmethod
    def head_from_config(cls, settings: Mapping[str, Any]) -> MLPHead:
        """A head of these sizes, whose state is then loaded."""
        return cls(
            settings["width"], settings["classes"], MLPHeadConfig(**settings["mlp"]), generator=torch.Generator()
        )


def _linear(one: int, two: int, bound: float, generator: torch.Generator | None) -> nn.Linear:
    # Not drawn by nn.Linear itself: that would move the global generator.
    layer = nn.Linear(one, two, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
