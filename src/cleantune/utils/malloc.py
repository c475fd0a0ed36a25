"""Memory of the process: what is freed and asked for again in every step stays, and how much it came to."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from functools import cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of glibc's mallopt."""


@cache
def keep_pages() -> bool:
    """Tell glibc not to give every activation's memory back to the system, only to fetch it anew in the next layer.

    By default an allocation above 128 KiB is mapped, zeroed page by page and unmapped, and above 32 MiB whatever the
    threshold is: an activation of 50 MB takes four times as long to write. So nothing is mapped. The process keeps up
    to what it had at its peak; what exceeds 2 GiB at the heap's end goes back.

    Returns:
        Whether it took effect: not with another C library, which has other habits.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return False


def peak_bytes() -> int:
    """The most memory that this process has held so far.

    Linux says it of the program itself; what getrusage says begins with the peak of the process that started it.
    """
    with contextlib.suppress(OSError, IndexError):
        return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
