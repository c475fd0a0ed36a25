"""Tables of an audit and the files of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cleantune.audit.result import Audit
from cleantune.audit.score_labels import AuditScores
from cleantune.data import Data
from cleantune.functional.knn import find_near_duplicates
from cleantune.label_quality.scores import LabelScores
from cleantune.pipeline.artifacts import write_gallery
from cleantune.pipeline.label_table import LabelTable, label_frame, measure_labels, write_labels
from cleantune.storage.files import write_json, write_table
from cleantune.storage.run_dir import RunDir

NUM_TRUSTED = 3
"""Neighbors with trusted labels that are kept for each sample."""
MAX_TRUSTED_P_WRONG = 0.2
"""Probability of being wrong up to which a neighbor's label is trusted."""
OUTLIER_DEVIATIONS = 4.0
"""Median absolute deviations above the median from which on a sample is an outlier."""
NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
MAX_PAIRS = 10_000
"""Pairs of classes that are listed, at most."""
MIN_SUSPECTS = 100
"""Rows for review where no label is listed as wrong; or a twentieth of all, where that is more."""


def build_audit(
    scores: AuditScores,
    table: LabelTable,
    kind: str,
    seconds: float,
    leaks: list[dict[str, Any]] | None = None,
) -> Audit:
    """Return the scores as tables.

    Args:
        scores: Scores of the labels, in the order of the table.
        table: The labels.
        kind: Kind of the data: image, text, features or probabilities.
        seconds: Duration of the audit.
        leaks: Near-duplicates between labeled samples and the test split.
    """
    import pandas as pd

    labels, names = scores.labels, list(table.class_names)
    duplicates = _duplicates(scores, table, leaks or [])
    frame = label_frame(labels, table, extra=_extra_columns(scores))
    summary = _summary(scores, table, kind, seconds) | {
        "duplicates": None if duplicates is None else _count_duplicates(duplicates),
        "outliers": None if "is_outlier" not in frame else int(frame["is_outlier"].sum()),
    }
    if not labels.identifiable:
        return Audit(frame, None, None, None, labels.reason, duplicates=duplicates, summary=summary)
    by_class = pd.DataFrame(labels.by_class.numpy(), columns=["rate", "low", "high"], index=names)
    by_class.insert(0, "size", np.bincount(table.y, minlength=len(names)))
    return Audit(
        labels=frame,
        noise_rate=labels.noise_rate,
        noise_rate_range=labels.noise_rate_range,
        transition=pd.DataFrame(labels.transition.numpy(), index=names, columns=names),
        by_class=by_class,
        pairs=_pairs(labels, names),
        duplicates=duplicates,
        summary=summary,
    )


def _summary(scores: AuditScores, table: LabelTable, kind: str, seconds: float) -> dict[str, Any]:
    labels, separability = scores.labels, scores.labels.separability
    identifiable = labels.identifiable
    summary: dict[str, Any] = {
        "audit": True,
        "kind": kind,
        "class_names": list(table.class_names),
        "samples": {"audited": len(table.y)},
        "seconds": round(seconds, 3),
        "identifiable": identifiable,
        "reason": labels.reason or None,
        "noise": {
            "estimated_rate": labels.noise_rate if identifiable else None,
            "estimated_range": list(labels.noise_rate_range) if identifiable else None,
        },
        "issues": {
            "count": int(labels.is_issue.sum()),
            "threshold": labels.threshold if identifiable else None,
        },
        "neighbors": None
        if scores.graph is None
        else {"count": scores.graph.index.shape[1], "recall": scores.graph.recall},
        "separability": None
        if separability is None
        else {
            "probe_kappa": separability.probe_kappa,
            "label_kappa": separability.label_kappa,
            "disagreement_ratio": separability.disagreement_ratio,
        },
        "sharpness": labels.sharpness,
    }
    measured = measure_labels(labels, table)
    return summary | ({"measured": measured} if measured else {})


def _extra_columns(scores: AuditScores) -> dict[str, np.ndarray]:
    """Return the scores of single detectors, and the outliers."""
    columns = {name: score.double().numpy() for name, score in scores.labels.detectors.items()}
    if scores.outlier_score is not None:
        outlier = scores.outlier_score.double().numpy()
        deviation = np.median(np.abs(outlier - np.median(outlier)))
        limit = np.median(outlier) + OUTLIER_DEVIATIONS * NORMAL_MAD * max(deviation, 1e-9)
        columns |= {"outlier_score": outlier, "is_outlier": outlier > limit}
    return columns


def _pairs(labels: LabelScores, names: list[str]) -> Any:
    import pandas as pd

    rate = labels.transition.clone().fill_diagonal_(0)
    top = rate.flatten().topk(min(MAX_PAIRS, rate.numel() - len(names)))
    true, given = top.indices // len(names), top.indices % len(names)
    low, high = labels.transition_range[:, true, given]
    return pd.DataFrame(
        {
            "true": [names[i] for i in true],
            "given": [names[i] for i in given],
            "rate": top.values.double().numpy(),
            "low": low.double().numpy(),
            "high": high.double().numpy(),
        }
    )


def _duplicates(scores: AuditScores, table: LabelTable, leaks: list[dict[str, Any]]) -> Any:
    import pandas as pd

    if scores.graph is None:
        return None
    pairs, cosine = find_near_duplicates(scores.graph)
    a, b = pairs.numpy().T
    frame = pd.DataFrame(
        {
            "id": table.ids[a],
            "other_id": table.ids[b],
            "split": table.split[a],
            "other_split": table.split[b],
            "cosine": cosine.double().numpy(),
            "label": table.values(table.y[a]),
            "other_label": table.values(table.y[b]),
        }
    )
    if leaks:
        more = pd.DataFrame(leaks)
        for column in ("label", "other_label"):
            more[column] = table.values(more[column].to_numpy())
        frame = pd.concat([frame, more], ignore_index=True) if len(frame) else more
    frame["conflict"] = frame["label"] != frame["other_label"]
    frame["leak"] = frame["split"] != frame["other_split"]
    return frame.sort_values(["conflict", "leak", "cosine"], ascending=False, ignore_index=True)


def _count_duplicates(duplicates: Any) -> dict[str, int]:
    return {
        "pairs": len(duplicates),
        "conflicting": int(duplicates["conflict"].sum()),
        "leaks": int(duplicates["leak"].sum()),
    }


def trusted_neighbors(scores: AuditScores, table: LabelTable) -> Any:
    """Return the nearest neighbors of every sample whose labels are trusted, nearest first.

    The columns `neighbors` and `labels` list their ids and given labels.
    """
    import pandas as pd

    assert scores.graph is not None
    index = scores.graph.index
    trusted = (scores.labels.p_wrong <= MAX_TRUSTED_P_WRONG)[index]
    order = (~trusted).int().argsort(dim=1, stable=True)[:, :NUM_TRUSTED]
    chosen, is_trusted = index.gather(1, order).numpy(), trusted.gather(1, order).numpy()
    ids, values = [str(i) for i in table.ids.tolist()], [str(v) for v in table.values(table.y)]
    rows = [row[ok].tolist() for row, ok in zip(chosen, is_trusted, strict=True)]
    return pd.DataFrame(
        {
            "id": table.ids,
            "neighbors": [[ids[j] for j in row] for row in rows],
            "labels": [[values[j] for j in row] for row in rows],
        }
    )


def write_tables(audit: Audit, scores: AuditScores, table: LabelTable, folder: Path, data: Data | None) -> None:
    """Write every file of the folder but its report; the summary comes last."""
    write_labels(folder, audit.labels)
    for name in ("transition", "by_class", "pairs", "duplicates"):
        frame = getattr(audit, name)
        if frame is not None:
            has_index = name in ("transition", "by_class")
            write_table(folder / f"{name}.csv", lambda path, f=frame, i=has_index: f.to_csv(path, index=i))  # type: ignore[misc]
    if scores.graph is not None:
        near = trusted_neighbors(scores, table)
        write_table(folder / RunDir.NEIGHBORS, lambda path: near.to_parquet(path, index=False))
    if data is not None:
        write_gallery(folder, data, suspects(audit.labels))
    write_json(folder / RunDir.SUMMARY, audit.summary)


def describe(audit: Audit) -> list[str]:
    """Return the result in sentences."""
    count = len(audit.labels)
    if not audit.identifiable:
        return [
            f"cannot tell how many of {count:,} labels are wrong: {audit.reason}",
            "no label is listed as wrong, but all are ranked; try a stronger or better fitting --model",
        ]
    assert audit.noise_rate is not None
    assert audit.noise_rate_range is not None
    low, high = audit.noise_rate_range
    return [
        f"noise rate {audit.noise_rate:.1%} (range {low:.1%} to {high:.1%})",
        f"{int(audit.labels['is_label_issue'].sum()):,} of {count:,} labels are listed as wrong",
    ]


def suspects(labels: Any) -> Any:
    """Return the rows for review: the issues, or, where there are none, the worst of all."""
    issues = labels[labels["is_label_issue"]]
    return issues if len(issues) else labels.head(max(MIN_SUSPECTS, len(labels) // 20))
