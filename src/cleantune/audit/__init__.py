"""Audit: find the wrong labels, say how many there are, and let a person fix them.

>>> import cleantune
>>> found = cleantune.audit(features=features, labels=labels)  # or pred_probs=…; doctest: +SKIP
>>> found.labels, found.noise_rate, found.noise_rate_range, found.transition  # doctest: +SKIP
>>> cleantune.audit("photos/", model="google/vit-base-patch16-224", out="runs/audit")  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from cleantune.label_quality.noise_model import Source

__all__ = ["Audit", "audit"]


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    labels: pd.DataFrame
    """One row a label, worst first: id, given_label, suggested_label, label_score, p_wrong, is_label_issue, …"""
    noise_rate: float | None
    """Share of wrong labels; None where the features or probabilities cannot tell."""
    noise_rate_range: tuple[float, float] | None
    """95 %: of sampling and of what labels alone leave open."""
    transition: pd.DataFrame | None
    """P(given = column | true = row)."""
    cannot_tell: str = ""
    """Why there is no number; empty where there is one."""
    by_class: pd.DataFrame | None = None
    """Noise rate of each given class: rate, low, high."""
    pairs: pd.DataFrame | None = None
    """Every pair of classes that labels were confused between: true, given, rate, low, high."""
    duplicates: pd.DataFrame | None = None
    """Near-duplicates: pairs of ids, their closeness, whether their labels conflict, whether splits leak."""
    summary: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    """Folder of the run, where one was written."""

    @property
    def report(self) -> Path | None:
        """The page to look at."""
        return None if self.path is None else self.path / "report.html"


def audit(
    data: Any = None,
    model: Any = None,
    *,
    features: Any = None,
    pred_probs: Any = None,
    labels: Any = None,
    annotators: Any = None,
    source: Source = "network",
    beta: float = 1.0,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Audit:
    """Find the wrong labels, without fine-tuning.

    Args:
        data: As in `fit`; a file `.npz` with `features` or `pred_probs` [N, C], and `label`.
        model: As in `fit`; none for features and probabilities.
        features: [N, D] instead of data; labels stand beside them.
        pred_probs: [N, C] instead of data, an array or memory-mapped; out-of-sample: no row was learned from its own
            label.
        labels: Given labels [N]; beside `pred_probs` the numbers 0..C-1.
        annotators: With data, names of columns with further labels (or one text, separated by commas); with arrays,
            their labels [A, N].
        source: Where probabilities come from: `network` that learned the labels whole, or `probe` on frozen features.
        beta: beta of the F-measure that the cut is best for: 1 balances precision and recall, 2 finds more, 0.5
            is surer.
        out: Folder of the run; needed with data, not with arrays.
        overwrite: Remove an earlier run in `out` first.
        silent: Say nothing.
        **options: Fields of the data, the model and the run by name: `label`, `image_size`, `limit`, …

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    if not beta > 0:
        raise UserError(f"beta is {beta}; it must be above 0: 1 balances precision and recall")
    if source not in ("network", "probe"):
        raise UserError(f'source is "{source}"; it is "network" or "probe"')
    given = [n for n, v in (("data", data), ("features", features), ("pred_probs", pred_probs)) if v is not None]
    if len(given) != 1:
        raise UserError(f"hand over one of data, features and pred_probs, not {' and '.join(given) or 'none of them'}")
    from cleantune.audit import run

    if data is not None:
        if out is None:
            raise UserError("--out is missing: name the folder of the run")
        table = run.build_config_table(data, model, options)
        return run.audit_data(table, Path(out), _names(annotators), source, beta, overwrite, quiet)
    if options or model is not None:
        raise UserError(f"{', '.join([*options, *(['model'] if model is not None else [])])}: only beside data")
    if labels is None:
        raise UserError("labels are missing: hand over one given label a row")
    import numpy as np

    others = None if annotators is None else np.asarray(annotators)
    return run.audit_arrays(features, pred_probs, labels, others, source, beta, out, overwrite, quiet)


def _names(annotators: Any) -> list[str]:
    if annotators is None:
        return []
    names = annotators.split(",") if isinstance(annotators, str) else list(annotators)
    return [str(name).strip() for name in names if str(name).strip()]
