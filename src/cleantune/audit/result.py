"""Result of an audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Audit:
    """Labels with their scores, and estimates of the noise in them."""

    labels: pd.DataFrame
    """One row per label, worst first: id, given_label, suggested_label, label_score, p_wrong, is_label_issue, …"""
    noise_rate: float | None
    """Fraction of wrong labels; None where it cannot be identified."""
    noise_rate_range: tuple[float, float] | None
    """Lowest and highest noise rate that sampling and the noise model leave open."""
    transition: pd.DataFrame | None
    """P(given = column | true = row)."""
    reason: str = ""
    """Explanation why label errors cannot be identified; empty where they can."""
    by_class: pd.DataFrame | None = None
    """Noise rate of each given class: size, rate, low, high."""
    pairs: pd.DataFrame | None = None
    """Every pair of classes that labels were confused between: true, given, rate, low, high."""
    duplicates: pd.DataFrame | None = None
    """Near-duplicates: pairs of ids, their cosine, whether their labels conflict, whether splits leak."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Content of summary.json."""
    path: Path | None = None
    """Folder of the run, where one was written."""

    @property
    def identifiable(self) -> bool:
        """Return whether wrong labels can be distinguished from an unsure model."""
        return not self.reason

    @property
    def cannot_tell(self) -> bool:
        """Return whether there is no noise rate and no list; `reason` explains it."""
        return not self.identifiable

    @property
    def report(self) -> Path | None:
        """Return the path of the HTML report, None where no folder was written."""
        return None if self.path is None else self.path / "report.html"
