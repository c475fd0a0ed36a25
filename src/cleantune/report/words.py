"""Display names, until the studies import `wording`."""

from cleantune.report.wording import METHOD_NAMES as METHODS

__all__ = ["METHODS"]
