"""Fine-tune a pre-trained model on labels you cannot fully trust, and get the wrong labels listed.

>>> import cleantune
>>> result = cleantune.fit("photos/", model="google/vit-base-patch16-224", out="runs/photos")  # doctest: +SKIP
>>> result.labels.head()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleantune.errors import UserError
    from cleantune.pipeline.fit import Result, fit
    from cleantune.pipeline.predict import Model, load
    from cleantune.studies.compare import Comparison, compare
    from cleantune.studies.search import Search, search

# No dependency calls home: the hub's telemetry is off before anything imports it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# The function shares the package's name: once the package is imported, the name can be given to the function for good.
from cleantune.audit import Audit, audit

__version__ = "0.1.0"
__all__ = [
    "Audit", "Comparison", "Model", "Result", "Search", "UserError", "audit", "compare", "fit", "load", "search",
]  # fmt: skip

_HOMES = {
    "fit": ("cleantune.pipeline.fit", "fit"),
    "Result": ("cleantune.pipeline.fit", "Result"),
    "load": ("cleantune.pipeline.predict", "load"),
    "Model": ("cleantune.pipeline.predict", "Model"),
    "search": ("cleantune.studies.search", "search"),
    "Search": ("cleantune.studies.search", "Search"),
    "compare": ("cleantune.studies.compare", "compare"),
    "Comparison": ("cleantune.studies.compare", "Comparison"),
    "UserError": ("cleantune.errors", "UserError"),
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import cleantune` and `--help` stay fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cleantune' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
