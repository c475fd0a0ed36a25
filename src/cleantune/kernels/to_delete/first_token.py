"""The last layer of a vision transformer, computed for the one token that is the feature.

Where the feature is the first token after the last layer, what that layer makes of the others is thrown away: of its
products only their keys and values are needed, two in twelve. That is 7 % of the forward_passes and of the training of a
network of twelve layers. The function is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.vit.modeling_vit import ViTLayer
from transformers.models.vit_msn.modeling_vit_msn import ViTMSNLayer


def first_token_only(module: nn.Module) -> None:
    """Let the last layer of a network give its first token alone, where the layer is known; names and weights stay."""
    layers = [layer for layer in module.modules() if type(layer) in _SHORT]
    if layers:
        layers[-1].__class__ = _SHORT[type(layers[-1])]


class FirstTokenViTLayer(ViTLayer):  # type: ignore[misc]
    """Attention and MLP, each after a norm and beside a shortcut."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """The first token [B, 1, D] of what the layer makes of tokens [B, T, D]."""
        return _first_of_vit(self, hidden_states, attention_mask)


class FirstTokenViTMSNLayer(ViTMSNLayer):  # type: ignore[misc]
    """Attention and MLP, each after a norm and beside a shortcut."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """The first token [B, 1, D] of what the layer makes of tokens [B, T, D]."""
        return _first_of_vit(self, hidden_states, attention_mask)


class FirstTokenCLIPLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """Attention and MLP, each after a norm and beside a shortcut."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """The first token [B, 1, D] of what the layer makes of tokens [B, T, D]."""
        dropout = self.self_attn.dropout
        attended = _attended(self.self_attn, self.layer_norm1(hidden_states), attention_mask, dropout)
        first: Tensor = hidden_states[:, :1] + self.self_attn.out_proj(attended)
        found: Tensor = first + self.mlp(self.layer_norm2(first))
        return found


def _first_of_vit(layer: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    attention = layer.attention
    attended = _attended(attention, layer.layernorm_before(tokens), mask, attention.attention_dropout)
    first: Tensor = tokens[:, :1] + layer.dropout(attention.o_proj(attended))
    found: Tensor = first + layer.dropout(layer.mlp(layer.layernorm_after(first)))
    return found


def _attended(attention: Any, tokens: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """What the first token gathers from all of them, its heads side by side [B, 1, D]."""
    query, key, value = (
        project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project, x in (
            (attention.q_proj, tokens[:, :1]), (attention.k_proj, tokens), (attention.v_proj, tokens)
        )
    )  # fmt: skip
    mine = None if mask is None else mask[..., :1, :]
    share = dropout if attention.training else 0.0
    gathered = functional.scaled_dot_product_attention(query, key, value, mine, share)
    return torch.flatten(gathered.transpose(1, 2), 2)


_SHORT: dict[type[nn.Module], type[nn.Module]] = {
    CLIPEncoderLayer: FirstTokenCLIPLayer,
    ViTLayer: FirstTokenViTLayer,
    ViTMSNLayer: FirstTokenViTMSNLayer,
}
