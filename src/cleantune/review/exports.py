"""The list of labels in the forms of other tools: files, and nothing of those tools is needed to write them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cleantune.errors import UserError
from cleantune.review.decisions import Decision
from cleantune.review.server import ReviewSession
from cleantune.storage.files import write_json, write_table

ENDINGS = {
    "csv": ".csv",
    "parquet": ".parquet",
    "cleanlab": ".csv",
    "fiftyone": ".json",
    "label-studio": ".json",
    "argilla": ".json",
}


def write_export(run: Path, decided: dict[tuple[str, str], Decision], form: str, out: Path) -> str:
    """Write the list; the sentence says what was written.

    - `csv`, `parquet`: the table as it is, with the decisions beside it.
    - `cleanlab`: its column names, in the order of the ids.
    - `fiftyone`: a list of fields by sample: `given`, `suggested`, `label_score`, `p_wrong`, tags.
    - `label-studio`: tasks with the suggestion as a prediction.
    - `argilla`: records with the suggestion.

    Raises:
        UserError: The name does not end as the form does.
    """
    import pandas as pd

    if out.suffix != ENDINGS[form]:
        raise UserError(f"--out {out}: the form {form} is written as {ENDINGS[form]}")
    frame = pd.read_parquet(run / "labels.parquet")
    keys = [(str(s), str(i)) for s, i in zip(frame["split"], frame["id"], strict=True)]
    frame["decision"] = [decided[k].decision if k in decided else None for k in keys]
    frame["decided_label"] = [decided[k].label or None if k in decided else None for k in keys]
    if form == "cleanlab":
        frame = frame.sort_values(["split", "id"])[
            ["id", "is_label_issue", "label_score", "given_label", "suggested_label"]
        ]
        frame = frame.rename(columns={"suggested_label": "predicted_label"})
    if out.suffix == ".csv":
        write_table(out, lambda path: frame.to_csv(path, index=False))
    elif out.suffix == ".parquet":
        write_table(out, lambda path: frame.to_parquet(path, index=False))
    else:
        session = ReviewSession(run)
        make = {"fiftyone": _fiftyone, "label-studio": _label_studio, "argilla": _argilla}[form]
        write_json(out, [make(session, row) for row in frame.to_dict("records")])  # type: ignore[arg-type]
    return f"{out}: {len(frame):,} labels for {form}"


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("label_score", "p_wrong", "is_label_issue") if k in row}


def _fiftyone(session: ReviewSession, row: dict[str, Any]) -> dict[str, Any]:
    out = {
        "id": row["id"],
        "filepath": _file(session, str(row["id"])),
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


def _content(session: ReviewSession, id: str) -> dict[str, Any]:  # noqa: A002
    """The sample itself: its text, the path of its image, or a small copy of it."""
    text = session.text(id)
    if text is not None:
        return {"text": text}
    file = _file(session, id)
    if file is not None:
        return {"image": file}
    picture = session.picture(id)
    return {} if picture is None else {"image": "data:image/jpeg;base64," + base64.b64encode(picture).decode()}


def _file(session: ReviewSession, id: str) -> str | None:  # noqa: A002
    if session.data is None or session.data.kind != "image" or id not in session.place:
        return None
    split, k = session.place[id]
    told = session.data.rows[split].samples.describe(k)
    return told if Path(told).is_file() else None
