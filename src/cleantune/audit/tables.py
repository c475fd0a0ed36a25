"""What an audit found as tables, and the files of its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.audit import Audit
from cleantune.audit.score_labels import Verdict
from cleantune.data import Data
from cleantune.functional import metrics
from cleantune.functional.knn import find_near_duplicates
from cleantune.storage.files import write_json, write_table
from cleantune.utils.arrays import object_array
from cleantune.utils.console import Console

TRUSTED = 3
"""Trusted neighbors that are shown as evidence."""
TRUST = 0.2
"""Probability of being wrong up to which a neighbor's label is trusted."""
SINGLE_PROCESS = 4.0
"""Median absolute deviations above the median from which on a sample is an outlier."""
PAIRS = 10_000
"""Pairs of classes that are listed, at the most."""


@dataclass(frozen=True)
class LabelTable:
    """Labels with their places."""

    ids: np.ndarray
    split: np.ndarray
    y: np.ndarray
    truth: np.ndarray | None
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def labels(self, codes: np.ndarray) -> np.ndarray:
        """The labels as the data write them; -1 is None."""
        written: np.ndarray = object_array([*self.values, None])[codes]
        return written


def build_audit(
    said: Verdict, rows: LabelTable, kind: str, seconds: float, leaks: list[dict[str, Any]] | None = None
) -> Audit:
    """The verdict as tables."""
    import pandas as pd

    names = list(rows.names)
    known = not said.doubt
    pairs = _pairs(said, names) if known else None
    duplicates = _duplicates(said, rows, leaks or [])
    frame = label_frame(said, rows)
    summary: dict[str, Any] = {
        "audit": True,
        "kind": kind,
        "class_names": names,
        "samples": {"audited": len(rows.y)},
        "seconds": round(seconds, 3),
        "cannot_tell": said.doubt or None,
        "noise": {
            "rate": said.rate if known else None,
            "low": said.interval[0] if known else None,
            "high": said.interval[1] if known else None,
        },
        "issues": {"count": int(said.issue.sum()), "cut": said.cut if known else None},
        "neighbors": None if said.graph is None else {"count": said.graph.index.shape[1], "recall": said.graph.recall},
        "separation": None
        if said.class_separability is None
        else {
            "between_probes": said.class_separability.between,
            "with_labels": said.class_separability.with_labels,
            "doubt": said.class_separability.doubt,
        },
        "sharpness": said.sharpness,
        "duplicates": None
        if duplicates is None
        else {
            "pairs": len(duplicates),
            "conflicting": int(duplicates["conflict"].sum()),
            "leaks": int(duplicates["leak"].sum()),
        },
        "outliers": None if "is_outlier" not in frame else int(frame["is_outlier"].sum()),
    }
    if rows.truth is not None:
        summary["measured"] = _measured(said, rows)
    by_class = pd.DataFrame(said.by_class.numpy(), columns=["rate", "low", "high"], index=names) if known else None
    if by_class is not None:
        by_class.insert(0, "size", np.bincount(rows.y, minlength=len(names)))
    return Audit(
        frame,
        said.rate if known else None,
        said.interval if known else None,
        pd.DataFrame(said.transition.numpy(), index=names, columns=names) if known else None,
        said.doubt,
        by_class,
        pairs,
        duplicates,
        summary,
    )


def label_frame(said: Verdict, rows: LabelTable) -> Any:
    """One row a label, worst first."""
    import pandas as pd

    columns: dict[str, Any] = {
        "id": rows.ids,
        "split": rows.split,
        "given_label": rows.labels(rows.y),
        "suggested_label": rows.labels(said.suggested.numpy()),
        "suggested_confidence": said.confidence.double().numpy(),
        "label_score": said.score.double().numpy(),
        "p_wrong": said.p_wrong.double().numpy(),
        "p_clean": 1 - said.p_wrong.double().numpy(),
        "is_label_issue": said.issue.numpy(),
    }
    columns |= {name: score.double().numpy() for name, score in said.detectors.items()}
    if said.outlier is not None:
        alone = said.outlier.double().numpy()
        middle = np.median(alone)
        columns["outlier_score"] = alone
        columns["is_outlier"] = alone > middle + SINGLE_PROCESS * 1.4826 * max(np.median(np.abs(alone - middle)), 1e-9)
    if rows.truth is not None:
        columns["true_label"] = rows.labels(rows.truth)
    frame = pd.DataFrame(columns).infer_objects()
    order = np.lexsort((np.arange(len(frame)), frame["label_score"].to_numpy()))
    return frame.iloc[order].reset_index(drop=True)


def _pairs(said: Verdict, names: list[str]) -> Any:
    import pandas as pd

    rate = said.transition.clone().fill_diagonal_(0)
    top = rate.flatten().topk(min(PAIRS, rate.numel() - len(names)))
    true, given = top.indices // len(names), top.indices % len(names)
    low, high = said.transition_interval[:, true, given]
    return pd.DataFrame(
        {
            "true": [names[i] for i in true],
            "given": [names[i] for i in given],
            "rate": top.values.double().numpy(),
            "low": low.double().numpy(),
            "high": high.double().numpy(),
        }
    )


def _duplicates(said: Verdict, rows: LabelTable, leaks: list[dict[str, Any]]) -> Any:
    import pandas as pd

    if said.graph is None:
        return None
    found, cosine = find_near_duplicates(said.graph)
    pairs = found.numpy()
    a, b = pairs[:, 0], pairs[:, 1]
    listed = {
        "id": rows.ids[a],
        "other_id": rows.ids[b],
        "split": rows.split[a],
        "other_split": rows.split[b],
        "cosine": cosine.double().numpy(),
        "label": rows.labels(rows.y[a]),
        "other_label": rows.labels(rows.y[b]),
    }
    frame = pd.DataFrame(listed)
    if leaks:
        more = pd.DataFrame(leaks)
        for column in ("label", "other_label"):
            more[column] = rows.labels(more[column].to_numpy())
        frame = pd.concat([frame, more], ignore_index=True) if len(frame) else more
    frame["conflict"] = frame["label"] != frame["other_label"]
    frame["leak"] = frame["split"] != frame["other_split"]
    return frame.sort_values(["conflict", "leak", "cosine"], ascending=False, ignore_index=True)


def _measured(said: Verdict, rows: LabelTable) -> dict[str, Any]:
    """How good the list is, where true labels are known; nothing is decided by it."""
    assert rows.truth is not None
    sure = rows.truth >= 0
    right = (rows.truth == rows.y)[sure]
    issue = said.issue.numpy()[sure]
    hits = int((issue & ~right).sum())
    return {
        "true_rate": float((~right).mean()),
        "auroc": metrics.auroc(said.score.double().numpy()[sure], right),
        "precision": hits / int(issue.sum()) if issue.any() else None,
        "recall": hits / int((~right).sum()) if (~right).any() else None,
        "suggestion_accuracy": float((said.suggested.numpy()[sure] == rows.truth[sure])[~right].mean())
        if (~right).any()
        else None,
    }


def trusted_neighbors(said: Verdict, rows: LabelTable) -> Any:
    """For every suspect its nearest neighbors whose labels are trusted: id and other ids, nearest first."""
    import pandas as pd

    assert said.graph is not None
    index = said.graph.index
    trusted = (said.p_wrong <= TRUST)[index]
    order = (~trusted).int().argsort(dim=1, stable=True)[:, :TRUSTED]
    chosen, sure = index.gather(1, order).numpy(), trusted.gather(1, order).numpy()
    ids, given = rows.ids.tolist(), rows.y
    return pd.DataFrame(
        {
            "id": rows.ids,
            "neighbors": [
                [str(ids[j]) for j, ok in zip(js, oks, strict=True) if ok] for js, oks in zip(chosen, sure, strict=True)
            ],
            "labels": [
                [str(rows.values[given[j]]) for j, ok in zip(js, oks, strict=True) if ok]
                for js, oks in zip(chosen, sure, strict=True)
            ],
        }
    )


def write(found: Audit, said: Verdict, rows: LabelTable, folder: Path, console: Console, data: Data | None) -> Audit:
    """Every file of the folder; the summary comes last but for the page."""
    from cleantune.audit.page import build
    from cleantune.pipeline.artifacts import gallery

    frame = found.labels
    write_table(folder / "labels.parquet", lambda path: frame.to_parquet(path, index=False))
    write_table(folder / "labels.csv", lambda path: frame.to_csv(path, index=False))
    for name in ("transition", "by_class", "pairs", "duplicates"):
        table = getattr(found, name)
        if table is not None:
            keep = name in ("transition", "by_class")
            write_table(folder / f"{name}.csv", lambda path, t=table, k=keep: t.to_csv(path, index=k))  # type: ignore[misc]
    if said.graph is not None:
        near = trusted_neighbors(said, rows)
        write_table(folder / "artifacts" / "neighbors.parquet", lambda path: near.to_parquet(path, index=False))
    if data is not None:
        shown = frame if not found.cannot_tell else frame.assign(is_label_issue=frame.index < 60)
        write_json(folder / "artifacts" / "gallery.json", gallery(data, shown))
    write_json(folder / "summary.json", found.summary)
    report = build(folder)
    for text in words(found):
        console.info(text)
    console.info(f"report: {report}")
    return replace(found, path=folder)


def words(found: Audit) -> list[str]:
    """What the audit found, in sentences."""
    count = len(found.labels)
    if found.cannot_tell:
        return [
            f"cannot tell how many of {count:,} labels are wrong: {found.cannot_tell}",
            "no label is called wrong; the list is ranked all the same. Try a stronger or better fitting --model.",
        ]
    assert found.noise_rate is not None
    assert found.noise_rate_range is not None
    low, high = found.noise_rate_range
    return [
        f"noise rate {found.noise_rate:.1%} (95 % interval {low:.1%} to {high:.1%})",
        f"{int(found.labels['is_label_issue'].sum()):,} of {count:,} labels look wrong",
    ]


def suspects(found_labels: Any) -> Any:
    """The rows that a person should look at: issues, or, where nothing can be told, the worst of all."""
    issues = found_labels[found_labels["is_label_issue"]]
    return issues if len(issues) else found_labels.head(max(100, len(found_labels) // 20))
