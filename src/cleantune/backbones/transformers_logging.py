"""Transformers without its noise."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers without telemetry, progress bars and advice, and the global generator as it was."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    if "huggingface_hub.constants" in sys.modules:  # the variables are read once, when this is imported
        setattr(sys.modules["huggingface_hub.constants"], "HF_HUB_DISABLE_TELEMETRY", True)  # noqa: B010
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
