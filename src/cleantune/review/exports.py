"""List of labels in the formats of other tools; none of those tools is needed to write them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cleantune.errors import UserError
from cleantune.review.decisions import Decision
from cleantune.review.session import ReviewSession
from cleantune.storage.files import write_json, write_table
from cleantune.storage.run_dir import RunDir

SUFFIXES = {
    "csv": ".csv",
    "parquet": ".parquet",
    "cleanlab": ".csv",
    "fiftyone": ".json",
    "label-studio": ".json",
    "argilla": ".json",
}
CLEANLAB_COLUMNS = ["id", "is_label_issue", "label_score", "given_label", "suggested_label"]


def write_export(run: Path, decided: dict[tuple[str, str], Decision], form: str, out: Path) -> str:
    """Write the list of labels, and return a sentence on what was written.

    - `csv`, `parquet`: the table as it is, with the decisions in further columns.
    - `cleanlab`: its column names, in the order of the ids.
    - `fiftyone`: a list of fields by sample: `given`, `suggested`, `label_score`, `p_wrong`, tags.
    - `label-studio`: tasks with the suggestion as a prediction.
    - `argilla`: records with the suggestion.

    Args:
        run: Folder of the audit.
        decided: Decisions by split and id.
        form: Name of the format.
        out: File to write.

    Raises:
        UserError: The file name does not have the suffix of the format.
    """
    import pandas as pd

    if out.suffix != SUFFIXES[form]:
        raise UserError(f"--out {out}: the format {form} is written as {SUFFIXES[form]}")
    frame = pd.read_parquet(run / RunDir.LABELS)
    keys = [(str(s), str(i)) for s, i in zip(frame["split"], frame["id"], strict=True)]
    frame["decision"] = [decided[k].decision if k in decided else None for k in keys]
    frame["decided_label"] = [decided[k].label or None if k in decided else None for k in keys]
    if form == "cleanlab":
        frame = frame.sort_values(["split", "id"])[CLEANLAB_COLUMNS]
        frame = frame.rename(columns={"suggested_label": "predicted_label"})
    if out.suffix == ".csv":
        write_table(out, lambda path: frame.to_csv(path, index=False))
    elif out.suffix == ".parquet":
        write_table(out, lambda path: frame.to_parquet(path, index=False))
    else:
        session = ReviewSession(run)
        convert = {"fiftyone": _fiftyone, "label-studio": _label_studio, "argilla": _argilla}[form]
        write_json(out, [convert(session, row) for row in frame.to_dict("records")])  # type: ignore[arg-type]
    return f"{out}: {len(frame):,} labels for {form}"


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("label_score", "p_wrong", "is_label_issue") if k in row}


def _fiftyone(session: ReviewSession, row: dict[str, Any]) -> dict[str, Any]:
    out = {
        "id": row["id"],
        "filepath": session.image_file(str(row["id"])),
        "split": row["split"],
        "given": {"label": str(row["given_label"])},
        "suggested": {"label": str(row["suggested_label"]), "confidence": row.get("suggested_confidence")},
        "tags": ["label_issue"] if row["is_label_issue"] else [],
    }
    return out | _numbers(row) | {"decision": row["decision"]}


def _label_studio(session: ReviewSession, row: dict[str, Any]) -> dict[str, Any]:
    choice = {"choices": [str(row["suggested_label"])]}
    result = {"from_name": "label", "to_name": "sample", "type": "choices", "value": choice}
    return {
        "data": {
            "id": row["id"],
            "split": row["split"],
            **_content(session, str(row["id"])),
            "given": str(row["given_label"]),
        },
        "predictions": [{"model_version": "cleantune", "score": row.get("suggested_confidence"), "result": [result]}],
        "meta": _numbers(row) | {"decision": row["decision"]},
    }


def _argilla(session: ReviewSession, row: dict[str, Any]) -> dict[str, Any]:
    suggestion = {"value": str(row["suggested_label"]), "score": row.get("suggested_confidence"), "agent": "cleantune"}
    metadata = {"split": row["split"], "given_label": str(row["given_label"])} | _numbers(row)
    return {
        "id": str(row["id"]),
        "fields": _content(session, str(row["id"])),
        "metadata": metadata,
        "suggestions": {"label": suggestion},
    }


def _content(session: ReviewSession, sample_id: str) -> dict[str, Any]:
    """Return the text of a sample, the path of its image, or a thumbnail."""
    text = session.text(sample_id)
    if text is not None:
        return {"text": text}
    file = session.image_file(sample_id)
    if file is not None:
        return {"image": file}
    picture = session.picture(sample_id)
    return {} if picture is None else {"image": "data:image/jpeg;base64," + base64.b64encode(picture).decode()}
