"""The report of an audit: one HTML file, made from its folder alone and readable without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cleantune.store import read_json, write_text

LISTED = 60
PAIRS = 15


def build(run: Path) -> Path:
    """Write `report.html` into the folder of an audit.

    Raises:
        UserError: The summary is missing.
    """
    import jinja2
    import pandas as pd
    from markupsafe import Markup

    from cleantune.auditing.table import suspects

    summary = read_json(run / "summary.json")
    labels = pd.read_parquet(run / "labels.parquet")
    listed = suspects(labels).head(LISTED).to_dict("records")
    gallery = run / "evidence" / "gallery.json"
    shown = {(g["split"], g["id"]): g for g in read_json(gallery)} if gallery.is_file() else {}
    for row in listed:
        seen = shown.get((row["split"], row["id"]), {})
        row |= {"thumbnail": seen.get("thumbnail"), "text": seen.get("text")}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cleantune.auditing", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: "" if share is None else f"{share:.1%}"
    environment.filters["count"] = lambda number: f"{number:,}"
    css = (Path(__file__).parents[1] / "report" / "page.css").read_text("utf-8")
    page = environment.get_template("page.html").render(
        css=Markup(css), name=run.name, summary=summary, rows=listed,
        by_class=_table(run / "by_class.csv", 40), pairs=_table(run / "pairs.csv", PAIRS),
        duplicates=_table(run / "duplicates.csv", PAIRS), total=len(labels),
    )  # fmt: skip
    write_text(run / "report.html", page)
    return run / "report.html"


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
