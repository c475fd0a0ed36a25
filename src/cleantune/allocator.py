"""Memory that is freed and asked for again in every step stays with the process."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's mallopt."""
_LARGEST = 1 << 25
"""glibc takes no larger threshold: what exceeds 32 MiB goes back to the system as before."""


@cache
def keep_pages() -> bool:
    """Tell glibc not to give every activation's memory back to the system, only to fetch it anew in the next layer.

    By default an allocation above 128 KiB is mapped, zeroed page by page and unmapped, which costs a small network a
    third of its time. The process keeps up to what it had at its peak.

    Returns:
        Whether it took effect: not with another C library, which has other habits.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return False
