"""Audit: find wrong labels, estimate how many there are, and prepare their review.

>>> import cleantune
>>> result = cleantune.audit(features=features, labels=labels)  # or pred_probs=…; doctest: +SKIP
>>> result.labels, result.noise_rate, result.noise_rate_range, result.transition  # doctest: +SKIP
>>> cleantune.audit("photos/", model="google/vit-base-patch16-224", out="runs/audit")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.audit.result import Audit
from cleantune.errors import UserError

if TYPE_CHECKING:
    from cleantune.label_quality.noise_model import Source

__all__ = ["Audit", "audit"]


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
    """Find wrong labels without fine-tuning.

    Args:
        data: As in `fit`; a file `.npz` with `features` or `pred_probs` [N, C], and `label`.
        model: As in `fit`; none for features and probabilities.
        features: [N, D] instead of data, together with labels.
        pred_probs: [N, C] instead of data, an array or memory-mapped; out-of-sample: no row was learned from its own
            label.
        labels: Given labels [N]; with `pred_probs` the numbers 0..C-1.
        annotators: With data, names of columns with further labels (or one text, separated by commas); with arrays,
            their labels [A, N].
        source: Origin of the probabilities: `network` that was trained on the labels, or `probe` on frozen features.
        beta: beta of the F-measure that the threshold maximizes: 1 weighs precision and recall alike, 2 favors recall,
            0.5 precision.
        out: Folder of the run; needed with data, not with arrays.
        overwrite: Remove an earlier run in `out` first.
        quiet: Print nothing.
        **options: Fields of the data, the model and the run by name: `label`, `image_size`, `limit`, …

    Raises:
        UserError: An input is wrong; the message names it and the remedy.
    """
    if not beta > 0:
        raise UserError(f"beta is {beta}; it must be above 0: 1 weighs precision and recall alike")
    if source not in ("network", "probe"):
        raise UserError(f'source is "{source}"; it is "network" or "probe"')
    given = [n for n, v in (("data", data), ("features", features), ("pred_probs", pred_probs)) if v is not None]
    if len(given) != 1:
        raise UserError(f"pass one of data, features and pred_probs, not {' and '.join(given) or 'none of them'}")
    from cleantune.audit import run

    if data is not None:
        if out is None:
            raise UserError("--out is missing: name the folder of the run")
        table = run.build_config_table(data, model, options)
        return run.audit_data(table, Path(out), _names(annotators), source, beta, overwrite=overwrite, quiet=quiet)
    if options or model is not None:
        raise UserError(f"{', '.join([*options, *(['model'] if model is not None else [])])}: only with data")
    if labels is None:
        raise UserError("labels are missing: pass one given label per row")
    import numpy as np

    return run.audit_arrays(
        features, pred_probs, labels, None if annotators is None else np.asarray(annotators), source, beta,
        out=out, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip


def _names(annotators: Any) -> list[str]:
    if annotators is None:
        return []
    names = annotators.split(",") if isinstance(annotators, str) else list(annotators)
    return [str(name).strip() for name in names if str(name).strip()]
