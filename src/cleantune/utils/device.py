"""The device that a run computes on."""

from __future__ import annotations

import torch

from cleantune.errors import UserError


def pick_device(setting: str) -> str:
    """`cuda` where asked for or, by `auto`, where there is one.

    Raises:
        UserError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if setting == "cuda" and not there:
        raise UserError("--device cuda: torch sees no GPU; use --device cpu")
    return "cuda" if setting == "cuda" or (setting == "auto" and there) else "cpu"
