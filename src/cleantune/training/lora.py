"""LoRA: low-rank adapters in the linear layers of a transformer's MLPs, trained instead of the backbone's weights.

Source: arXiv:2106.09685; layers and rank 8 as in the code of arXiv:2403.06869. Needs the package peft.
"""

from __future__ import annotations

import copy
import re
from typing import TypeVar

import torch
from torch import nn

from cleantune.errors import UserError

M = TypeVar("M", bound=nn.Module)
LEARNING_RATE_FACTOR = 10.0
"""Learning rate of the adapters in multiples of the backbone's; neither paper nor code states one."""
LAYERS = re.compile(r"(^|\.)(mlp|intermediate|output|pwconv[12])(\.|$)")
ATTENTION = re.compile(r"(^|\.)(attention|attn|self_attn|self_attention)(\.|$)")
_ADAPTER = "lora_"


def add_lora(backbone: M, rank: int, seed: int) -> M:
    """Return a copy of a backbone with adapters, which change no output until they are trained.

    Args:
        backbone: Backbone, which stays as it is.
        rank: Rank of the adapters, which are scaled by 8 / rank.
        seed: Seed of their initial weights; the global generator stays as it is.

    Raises:
        UserError: peft is not installed, or the backbone has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("scope lora needs the package peft: pip install 'cleantune[lora]'") from None
    names = [name for name, module in backbone.named_modules() if type(module) is nn.Linear and _is_mlp_layer(name)]
    if not names:
        raise UserError("scope lora needs a transformer: this backbone has no MLP layers; take --scope all")
    adapted = copy.deepcopy(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=names), adapted)
    return adapted


def _is_mlp_layer(name: str) -> bool:
    return bool(LAYERS.search(name)) and not ATTENTION.search(name)


def set_trainable(backbone: nn.Module, trainable: bool) -> None:
    """Set whether a backbone is trained: its adapters where it has any, otherwise all of it."""
    has_adapters = any(_ADAPTER in name for name, _ in backbone.named_parameters())
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(trainable and (not has_adapters or _ADAPTER in name))


def merge(backbone: nn.Module) -> None:
    """Merge adapters into the weights of their layers, and remove them."""
    layers = [(name, module) for name, module in backbone.named_modules() if hasattr(module, "base_layer")]
    for name, module in layers:
        module.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(backbone.get_submodule(parent), attribute, module.get_base_layer())
