"""State of the process: allocator, signals, environment and log levels. No other module of the package sets them."""

from __future__ import annotations

import os
import signal
from typing import Any

from cleantune.utils.malloc import keep_pages


def configure_process() -> None:
    """Set the process up for a run of the command line.

    - The allocator keeps freed activation memory (see `keep_pages`).
    - SIGTERM ends a run as Ctrl-C does, so that a batch system's stop leaves a folder that `--resume` continues.
    - Transformers logs errors only, unless TRANSFORMERS_VERBOSITY is set.

    The number of threads stays torch's choice. `import cleantune` switches telemetry off.
    """
    keep_pages()
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def enable_logging() -> None:
    """Show the log messages of the libraries, for `--verbose`."""
    import logging

    os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def is_verbose() -> bool:
    """Return whether `enable_logging` was called."""
    return os.environ.get("TRANSFORMERS_VERBOSITY") == "info"


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
