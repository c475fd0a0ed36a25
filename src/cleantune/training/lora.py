"""LoRA: small matrices beside the linear layers of a transformer's MLPs learn in the place of the backbone's weights.

Source: arXiv:2106.09685; layers and rank 8 as in the code of arXiv:2403.06869 (nmtune spec
6.3). Needs the package peft.
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
"""The adapters' learning rate in multiples of the backbone's: neither paper nor code states one."""
LAYERS = re.compile(r"(^|\.)(mlp|intermediate|output|pwconv[12])(\.|$)")
ATTENTION = re.compile(r"(^|\.)(attention|attn|self_attn|self_attention)(\.|$)")
_ADAPTER = "lora_"


def add_lora(backbone: M, rank: int, seed: int) -> M:
    """A copy of a backbone with adapters, which do nothing until they have learned.

    Args:
        backbone: Left as it is.
        rank: Of the adapters; they are scaled by 8 / rank.
        seed: Of their initial weights; the global generator is not touched.

    Raises:
        UserError: peft is not installed, or the backbone has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("scope lora needs the package peft: pip install 'cleantune[lora]'") from None
    names = [name for name, module in backbone.named_modules() if type(module) is nn.Linear and _meant(name)]
    if not names:
        raise UserError("scope lora needs a transformer: this backbone has no MLP layers; take --scope all")
    out = copy.deepcopy(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=names), out)
    return out


def _meant(name: str) -> bool:
    return bool(LAYERS.search(name)) and not ATTENTION.search(name)


def set_trainable(backbone: nn.Module, on: bool) -> None:
    """Let a backbone learn or not: its adapters where it has any, else all of it."""
    names = [name for name, _ in backbone.named_parameters()]
    some = any(_ADAPTER in name for name in names)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(on and (not some or _ADAPTER in name))


def merge(backbone: nn.Module) -> None:
    """Put what adapters have learned into the weights beside them, and take the adapters away."""
    layers = [(name, module) for name, module in backbone.named_modules() if hasattr(module, "base_layer")]
    for name, module in layers:
        module.merge()
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, module.get_base_layer())
