"""Fine-tune pre-trained models on noisy labels, and find the wrong labels.

>>> import cleantune
>>> result = cleantune.fit("photos/", model="google/vit-base-patch16-224", out="runs/photos")  # doctest: +SKIP
>>> result.labels.head()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function has the name of its package. A package becomes an attribute once, when it is first imported: the function
# replaces it here for good.
from cleantune.audit import Audit, audit
from cleantune.utils.telemetry import disable_telemetry

if TYPE_CHECKING:
    from cleantune.errors import UserError
    from cleantune.pipeline.fit import Result, fit, plan
    from cleantune.pipeline.predict import Model, load
    from cleantune.studies.compare import Comparison, compare
    from cleantune.studies.search import Search, search

# The one change of the environment at import: data stay private in Python too, and huggingface_hub and Ray read these
# variables once, when they are imported. No result depends on them.
disable_telemetry()

__version__ = "0.1.0"
__all__ = [
    "Audit", "Comparison", "Model", "Result", "Search", "UserError", "audit", "compare", "fit", "load", "plan",
    "search",
]  # fmt: skip

_MODULES = {
    "Comparison": "cleantune.studies.compare",
    "Model": "cleantune.pipeline.predict",
    "Result": "cleantune.pipeline.fit",
    "Search": "cleantune.studies.search",
    "UserError": "cleantune.errors",
    "compare": "cleantune.studies.compare",
    "fit": "cleantune.pipeline.fit",
    "load": "cleantune.pipeline.predict",
    "plan": "cleantune.pipeline.fit",
    "search": "cleantune.studies.search",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import cleantune` and `cleantune --help` are fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'cleantune' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
