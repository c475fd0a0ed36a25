"""Set environment variables and thread counts of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def default_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are unset, and remove them again at the end of the context."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def use_threads(number: int) -> None:
    """Let torch compute with this number of threads in this process."""
    import torch

    torch.set_num_threads(number)
