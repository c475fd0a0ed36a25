"""Telemetry of dependencies."""

from __future__ import annotations

import os
import sys
from types import ModuleType

SWITCHES = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment variables that switch the telemetry of huggingface_hub and Ray off."""
_ABSENT = object()


def disable_telemetry() -> None:
    """Switch the telemetry of dependencies off, unless the user has set the variables."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    OpenVINO reports its import to a server unless the module `openvino_telemetry` is missing; then it takes a stub. The
    module is hidden during the import only.
    """
    previous = sys.modules.get("openvino_telemetry", _ABSENT)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if previous is _ABSENT:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = previous  # type: ignore[assignment]
    module: ModuleType = openvino
    return module
