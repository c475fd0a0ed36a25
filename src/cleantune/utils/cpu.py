"""Processor of this machine."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def cpu_info() -> Mapping[str, str]:
    """Return Linux's facts on the first core (`vendor_id`, `model name`, `flags`); nothing on other systems."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def cpu_name() -> str:
    """Return the processor's model name, or the machine type if the system does not state it."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()
