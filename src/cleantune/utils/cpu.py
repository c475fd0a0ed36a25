"""What the system says about this machine's processor."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def cpu_info() -> Mapping[str, str]:
    """What Linux says of the first core (`vendor_id`, `model name`, `flags`); of another system, nothing."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def name() -> str:
    """Its name, or the kind of machine."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()
