"""Classification heads: from features of a backbone to scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cleantune.methods.protocol import MLPHeadConfig, Output


class LinearHead(nn.Module):
    """A linear classifier on standardized features: `weight @ ((f - mean) / std) + bias`, in float32.

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
        """Create a head.

        Args:
            width: Dimension D of the features.
            classes: Number of classes C.
            init: Initial weights: from N(0, 0.02^2), or zeros. The bias is zero.
            standardize: Mean and standard deviation [D]; None leaves features as they are.
            generator: Generator of the initial weights.
        """
        super().__init__()
        self.linear = _empty_linear(width, classes)
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
        """Return the scores, the standardized features and the features."""
        if torch.is_autocast_enabled(f.device.type):
            with torch.autocast(f.device.type, enabled=False):
                return self.forward(f)
        f = f.to(self.linear.weight.dtype)
        z = (f - self.mean) / self.std
        return Output(self.linear(z), z, f)

    def raw_weights(self) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """Return weight and bias of the same function on features that are not standardized, computed in float64."""
        weight = self.linear.weight.detach().double() / self.std.double()
        bias = self.linear.bias.detach().double() - weight @ self.mean.double()
        return weight.float(), bias.float()

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs besides the state."""
        return {"width": self.linear.in_features, "classes": self.linear.out_features}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LinearHead:
        """Create a head of these sizes, whose state is loaded afterwards."""
        return cls(config["width"], config["classes"], init="zeros")


class MLPHead(nn.Module):
    """An MLP that reshapes features, and a linear classifier on its output, in float32: the head of NMTune.

    x = (f - mean) / std, u = W2 relu(norm(W1 x)), z = scale * u + x with the residual and u without it. `mean` and
    `std` decide whether features are standardized. `Output.features` is x, the input of the MLP, so that z is
    compared with its own input. In training mode, dropout sets dimensions of x to zero and scales up the rest.

    Source: NMTune (arXiv:2309.17002), section 3.1, and the authors' code. Differs: dropout, which neither has.
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
        """Create a head: the MLP as torch initializes linear layers, the classifier by the config, its bias at zero.

        Args:
            width: Dimension D of the features.
            classes: Number of classes C.
            mlp: Settings of the MLP.
            standardize: Mean and standard deviation [D]; None, or a config without standardization, leaves features as
                they are.
            generator: Generator of the initial weights.
        """
        super().__init__()
        self.mlp = mlp
        hidden = round(mlp.ratio * width)
        sizes = [width, *[hidden] * mlp.layers]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers.append(_uniform_linear(fan_in, fan_out, 1 / math.sqrt(fan_in), generator))
            layers += [nn.BatchNorm1d(fan_out)] if mlp.norm == "batch" else []
            layers.append(nn.ReLU())
        layers.append(_uniform_linear(sizes[-1], width, 1 / math.sqrt(sizes[-1]), generator))
        self.layers = nn.Sequential(*layers)
        self.scale = nn.Parameter(torch.full((width,), mlp.residual_scale)) if mlp.residual else None
        bound = math.sqrt(6 / width) if mlp.classifier == "kaiming" else 0.0
        self.linear = _uniform_linear(width, classes, bound, generator)
        with torch.no_grad():
            self.linear.bias.zero_()
        mean, std = standardize if standardize and mlp.standardize else (torch.zeros(width), torch.ones(width))
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())
        self.generator: torch.Generator | None = None

    def seed_dropout(self, seed: int) -> None:
        """Draw dropout from a generator of this seed: processes that see the same rows must drop the same numbers."""
        self.generator = torch.Generator(self.mean.device).manual_seed(seed)

    def forward(self, f: Shaped[Tensor, "B D"]) -> Output:
        """Return the scores, the reshaped features and the input of the MLP."""
        with torch.autocast(f.device.type, enabled=False):
            x = (f.to(self.linear.weight.dtype) - self.mean) / self.std
            if self.training and self.mlp.dropout:
                kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.mlp.dropout
                x = x * kept / (1 - self.mlp.dropout)
            z: Float[Tensor, "B D"] = self.layers(x)
            if self.scale is not None:
                z = self.scale * z + x
            return Output(self.linear(z), z, x)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs besides the state."""
        width, classes = self.linear.in_features, self.linear.out_features
        return {"width": width, "classes": classes, "mlp": asdict(self.mlp)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MLPHead:
        """Create a head of these sizes, whose state is loaded afterwards."""
        mlp = MLPHeadConfig(**config["mlp"])
        return cls(config["width"], config["classes"], mlp, generator=torch.Generator())


class ProjectedHead(nn.Module):
    """A head with a projection for contrastive losses next to its classifier; predictions ignore the projection.

    Source: UNICON's projection (arXiv:2203.14542), here Linear and BatchNorm1d without a hidden layer.
    """

    def __init__(self, head: nn.Module, dim: int, seed: int) -> None:
        """Add a projection to a head.

        Args:
            head: Classifier.
            dim: Output dimension P of the projection.
            seed: Seed of its initial weights.
        """
        super().__init__()
        self.head = head
        width = head_width(head)
        linear = _uniform_linear(width, dim, width**-0.5, torch.Generator().manual_seed(seed))
        self.projection = nn.Sequential(linear, nn.BatchNorm1d(dim))

    def forward(self, f: Shaped[Tensor, "B D"]) -> Output:
        """Return the output of the classifier."""
        output: Output = self.head(f)
        return output

    def project(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """Return the projection of the input of the classifier."""
        projected: Tensor = self.projection(z)
        return projected


HEADS: dict[str, type[LinearHead] | type[MLPHead]] = {"LinearHead": LinearHead, "MLPHead": MLPHead}
"""Heads that a saved model can have, by the name in its config."""


def unwrap_head(head: nn.Module) -> nn.Module:
    """Return the head without its projection: the one that is exported."""
    return head.head if isinstance(head, ProjectedHead) else head


def head_width(head: nn.Module) -> int:
    """Return the dimension of the features that a head takes."""
    width: int = head_to_config(head)["width"]
    return width


def head_to_config(head: nn.Module) -> dict[str, Any]:
    """Return kind and sizes of a head without its projection, as `head_from_config` takes them."""
    head = unwrap_head(head)
    return {"kind": type(head).__name__, **head.get_config()}  # type: ignore[operator]


def head_from_config(config: Mapping[str, Any]) -> LinearHead | MLPHead:
    """Create the head that a config describes; its state is loaded afterwards."""
    return HEADS[config["kind"]].from_config(config)


def _empty_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """Create a layer without initial weights: nn.Linear would draw them from the global generator."""
    return nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")


def _uniform_linear(fan_in: int, fan_out: int, bound: float, generator: torch.Generator | None) -> nn.Linear:
    """Create a layer with weights and biases from U(-bound, bound)."""
    layer = _empty_linear(fan_in, fan_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
