"""The models of a run: backbones, and heads and optimizers by phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cleantune.distributed.batch_norm import convert_sync_batchnorm
from cleantune.distributed.fsdp import full_tensor, shard
from cleantune.distributed.process_group import ProcessGroup
from cleantune.methods.protocol import Phase
from cleantune.training.candidates import CandidateModels, strip_prefix
from cleantune.training.heads import MLPHead, ProjectedHead
from cleantune.training.lora import set_trainable
from cleantune.training.models import Model
from cleantune.training.optim import make_optimizer


class ModelState:
    """The models of a run, their heads and optimizers by phase, and candidates for model selection.

    Attributes:
        models: One model, or two for methods with a peer.
        phase_heads: Heads and optimizers, a pair for each model, by the phase that used them last.
        candidates: Copies of the models of earlier epochs.
        backbone_changed: Whether the backbones differ from the pre-trained ones.
    """

    def __init__(
        self,
        models: Sequence[Model],
        new_head: Callable[[Any, int], nn.Module],
        seed: int,
        device: torch.device,
        process_group: ProcessGroup,
        *,
        is_sharded: bool,
    ) -> None:
        """Move the models to a device.

        Args:
            models: Models before the first phase.
            new_head: Function from features [N, D] and the number of the model to a new head.
            seed: Seed of the initial weights of MLPs and projections.
            device: Device of the models.
            process_group: Processes that share the run.
            is_sharded: Divide backbones that are trained among the processes (FSDP).
        """
        self.models = [model.to(device) for model in models]
        self.phase_heads: dict[str, list[tuple[nn.Module, torch.optim.Optimizer]]] = {}
        self.candidates = CandidateModels()
        self.backbone_changed = False
        self._new_head = new_head
        self._seed = seed
        self._device = device
        self._process_group = process_group
        self._is_sharded = is_sharded

    def set_up(self, phase: Phase, features: Any) -> None:
        """Set up heads and optimizers of a phase.

        Args:
            phase: The phase.
            features: Features [N, D] that new heads standardize.
        """
        for model in self.models:
            model.freeze_batchnorm = phase.stage.freeze_batchnorm
            if model.backbone is not None:
                set_trainable(model.backbone, phase.scope == "all")
                if phase.scope == "all" and self._is_sharded:
                    shard(model.backbone, self._process_group)
                if not model.freeze_batchnorm:
                    convert_sync_batchnorm(model.backbone, self._process_group)
        if phase.head == "resume":
            for model, (head, _) in zip(self.models, self.phase_heads[phase.name], strict=True):
                model.head = head
            return
        if phase.head == "new":
            for k, model in enumerate(self.models):
                model.head = self._create_head(phase, features, k).to(self._device)
        self.phase_heads[phase.name] = [(model.head, make_optimizer(model, phase)) for model in self.models]

    def _create_head(self, phase: Phase, features: Any, k: int) -> nn.Module:
        """Create a head for model k, with the MLP and the projection of the phase."""
        head: Any = self._new_head(features, k)
        if phase.mlp is not None:
            rng = torch.Generator().manual_seed(self._seed + k)
            head = MLPHead(**head.get_config(), mlp=phase.mlp, standardize=(head.mean, head.std), generator=rng)
        return ProjectedHead(head, phase.projection_dim, self._seed + k) if phase.projection_dim else head

    def backbone_state(self) -> dict[str, Tensor]:
        """Return the state of all backbones; empty if they are as pre-trained."""
        if not self.backbone_changed:
            return {}
        states = [{} if model.backbone is None else model.backbone.state_dict() for model in self.models]
        return {f"{k}.{name}": full_tensor(value) for k, state in enumerate(states) for name, value in state.items()}

    def load_backbone_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `backbone_state` returned; an empty state leaves the backbones as they are."""
        if not state:
            return
        for k, model in enumerate(self.models):
            if model.backbone is not None:
                model.backbone.load_state_dict(strip_prefix(state, f"{k}."))
        self.backbone_changed = True

    def keep_candidate(self, name: str) -> None:
        """Keep a copy of the models for model selection."""
        self.candidates.keep(name, [model.head for model in self.models], self.backbone_state())

    def load_candidate(self, name: str, models: Sequence[Model]) -> None:
        """Replace the models by a candidate.

        Args:
            name: Name of the candidate.
            models: Models as they were before the first phase.
        """
        self.models = [model.to(self._device) for model in models]
        self.backbone_changed = False
        self.load_backbone_state(self.candidates.backbones(name))
        for model, head in zip(self.models, self.candidates.heads(name), strict=True):
            model.head = head.to(self._device)

    def gather(self, new_models: Callable[[], Sequence[Model]]) -> None:
        """Replace models that are divided among the processes by whole ones.

        Args:
            new_models: Function that creates the models as they were before the first phase.
        """
        if not self._is_sharded:
            return
        state, heads = self.backbone_state(), [model.head for model in self.models]
        self.models = [model.to(self._device) for model in new_models()]
        for model, head in zip(self.models, heads, strict=True):
            model.head = head
        self.load_backbone_state(state)
