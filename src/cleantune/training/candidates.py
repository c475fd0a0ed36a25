"""Copies of models of earlier epochs, among which model selection chooses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cleantune.training.heads import head_from_config, head_to_config, unwrap_head


class CandidateModels:
    """Copies of the models of a run, by name."""

    def __init__(self) -> None:
        """Create an empty collection."""
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._heads: dict[str, list[dict[str, Any]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def keep(self, name: str, heads: Sequence[nn.Module], backbones: Mapping[str, Tensor]) -> None:
        """Copy heads, without their projections, and the state of the backbones.

        Args:
            name: Name of the candidate; an earlier one of this name is replaced.
            heads: Head of each model.
            backbones: State of all backbones as one mapping; empty if they are as pre-trained.
        """
        tensors = {f"backbone.{key}": value for key, value in backbones.items()}
        for k, head in enumerate(heads):
            tensors |= {f"head.{k}.{key}": value for key, value in unwrap_head(head).state_dict().items()}
        self._tensors[name] = {key: value.detach().cpu().clone() for key, value in tensors.items()}
        self._heads[name] = [head_to_config(head) for head in heads]

    def heads(self, name: str) -> list[nn.Module]:
        """Create the heads of a candidate, one for each model."""
        heads: list[nn.Module] = []
        for k, config in enumerate(self._heads[name]):
            head = head_from_config(config)
            head.load_state_dict(strip_prefix(self._tensors[name], f"head.{k}."))
            heads.append(head)
        return heads

    def backbones(self, name: str) -> dict[str, Tensor]:
        """Return the state of the backbones of a candidate; empty if they are as pre-trained."""
        return strip_prefix(self._tensors[name], "backbone.")

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and the configs of the heads."""
        tensors = {f"{name}.{key}": value for name, group in self._tensors.items() for key, value in group.items()}
        return tensors, dict(self._heads)

    def load_state_dict(self, tensors: Mapping[str, Tensor], heads: Mapping[str, Any]) -> None:
        """Replace all candidates."""
        self._heads = dict(heads)
        self._tensors = {name: strip_prefix(tensors, f"{name}.") for name in heads}


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
