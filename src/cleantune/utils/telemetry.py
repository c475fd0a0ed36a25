"""Telemetry of dependencies."""

from __future__ import annotations

import os

SWITCHES = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment variables that switch the telemetry of huggingface_hub and Ray off."""


def disable_telemetry() -> None:
    """Switch the telemetry of dependencies off, unless the user has set the variables."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
