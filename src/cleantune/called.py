"""Packages that are called as the function in them: `cleantune.compare(…)`, whichever of the two was imported first."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class Called(ModuleType):
    """The class of a package that is also the function of its own name in it.

    >>> sys.modules[__name__].__class__ = Called  # at the end of the package; doctest: +SKIP
    """

    def __call__(self, *args: Any, **said: Any) -> Any:
        """What the function returns."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **said)
