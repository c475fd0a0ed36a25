"""Memory of the process: allocator settings and peak."""

from __future__ import annotations

import contextlib
import sys
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""


@cache
def keep_pages() -> bool:
    """Disable malloc trimming and mmap, so that freed activation memory is reused instead of returned to the OS.

    By default glibc maps, zeroes and unmaps every block above 32 MiB, which makes writing an activation of 50 MB four
    times as slow. With this setting the process keeps up to its peak; more than 2 GiB at the heap's end is returned.

    Gain: feature extraction on CPU from 2,128 to 3,336 images/s (torch, MobileNetV2). Set it for the process, thus in
    the command line only; Python programs may call it, or preload jemalloc.

    Returns:
        True if the setting was accepted; False with another C library than glibc.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    return False


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    with contextlib.suppress(OSError, IndexError):  # Linux; getrusage would include the parent's peak before exec
        return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    try:
        import resource  # POSIX only
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
