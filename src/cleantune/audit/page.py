"""The report of an audit: one HTML file, made from its folder alone and readable without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cleantune.report.templates import render_page
from cleantune.storage.files import read_json, write_text

LISTED = 60
PAIRS = 15


def build(run: Path) -> Path:
    """Write `report.html` into the folder of an audit.

    Raises:
        UserError: The summary is missing.
    """
    import pandas as pd

    from cleantune.audit.tables import suspects

    summary = read_json(run / "summary.json")
    labels = pd.read_parquet(run / "labels.parquet")
    listed = suspects(labels).head(LISTED).to_dict("records")
    gallery = run / "artifacts" / "gallery.json"
    shown = {(g["split"], g["id"]): g for g in read_json(gallery)} if gallery.is_file() else {}
    for row in listed:
        seen = shown.get((row["split"], row["id"]), {})
        row |= {"thumbnail": seen.get("thumbnail"), "text": seen.get("text")}
    parts = {
        "name": run.name, "summary": summary, "rows": listed, "total": len(labels),
        "by_class": _table(run / "by_class.csv", 40), "pairs": _table(run / "pairs.csv", PAIRS),
        "duplicates": _table(run / "duplicates.csv", PAIRS),
    }  # fmt: skip
    page = render_page("cleantune.audit", "page.html", parts, percent=_percent, count="{:,}".format)
    write_text(run / "report.html", page)
    return run / "report.html"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _table(path: Path, most: int) -> list[dict[str, Any]]:
    import pandas as pd

    if not path.is_file() or path.stat().st_size < 3:
        return []
    frame = pd.read_csv(path, dtype={"true": str, "given": str, "id": str, "other_id": str}, keep_default_na=False)
    frame = frame.rename(columns={frame.columns[0]: "name"}) if path.name == "by_class.csv" else frame
    if path.name == "by_class.csv":
        frame = frame.sort_values("rate", ascending=False)
    rows: list[dict[str, Any]] = frame.head(most).to_dict("records")  # type: ignore[assignment]
    return rows
