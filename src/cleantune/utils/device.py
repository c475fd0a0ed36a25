"""Device of a run."""

from __future__ import annotations

import torch

from cleantune.errors import UserError


def pick_device(setting: str) -> str:
    """Return the torch device for a setting: `cpu`, `cuda`, or `auto` for CUDA if available.

    Raises:
        UserError: The setting is `cuda` and torch finds no GPU.
    """
    is_available = torch.cuda.is_available()
    if setting == "cuda" and not is_available:
        raise UserError("--device cuda: torch sees no GPU; use --device cpu")
    return "cuda" if setting == "cuda" or (setting == "auto" and is_available) else "cpu"
