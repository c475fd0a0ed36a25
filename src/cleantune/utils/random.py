"""Seeded blocks of torch's global random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the context, and restore them afterwards.

    Dropout inside a pre-trained backbone draws from the global generators. Seeded for each pass, they need no place in
    a checkpoint.

    Args:
        seed: Seed of the generators of the CPU and of the device.
        device: Device on which the block computes.
    """
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
