"""Report of an audit: one HTML file, built from its folder alone, that needs no network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cleantune.audit.tables import suspects
from cleantune.report.tables import gallery_samples
from cleantune.report.templates import render_page
from cleantune.report.wording import Tile
from cleantune.storage.files import read_json, write_text
from cleantune.utils.format import count, decimal, percent

MAX_SAMPLES = 60
MAX_CLASSES = 40
MAX_PAIRS = 15


def build(run: Path) -> Path:
    """Write `report.html` into the folder of an audit, and return its path.

    Raises:
        UserError: The summary is missing.
    """
    import pandas as pd

    summary = read_json(run / "summary.json")
    labels = pd.read_parquet(run / "labels.parquet")
    entries = suspects(labels).head(MAX_SAMPLES).to_dict("records")
    gallery = run / "artifacts" / "gallery.json"
    shown = {(g["split"], g["id"]): g for g in read_json(gallery)} if gallery.is_file() else {}
    entries = [shown.get((entry["split"], entry["id"]), {}) | entry for entry in entries]
    samples, num_dropped = gallery_samples(entries)
    folder = shlex.quote(run.resolve().name)
    parts = {
        "name": run.resolve().name,
        "conclusions": conclusions(summary, len(labels)),
        "tiles": tiles(summary),
        "samples": samples,
        "num_dropped_pictures": num_dropped,
        "kind": next((str(entry["kind"]) for entry in entries if "kind" in entry), "features"),
        "by_class": _table(run / "by_class.csv", MAX_CLASSES),
        "pairs": _table(run / "pairs.csv", MAX_PAIRS),
        "duplicates": _table(run / "duplicates.csv", MAX_PAIRS),
        "commands": [
            ("Review the label issues", f"cleantune review {folder}"),
            ("Write the data with the decisions", f"cleantune apply {folder} --out DATA"),
        ],
    }
    write_text(run / "report.html", render_page("cleantune.audit", "page.html", parts))
    return run / "report.html"


def conclusions(summary: dict[str, Any], total: int) -> list[str]:
    """Return the conclusions of an audit as sentences."""
    if not summary["identifiable"]:
        return [
            f"The number of wrong labels among {count(total)} cannot be identified: {summary['reason']}.",
            "No label is an issue. The labels are ranked; a stronger or better fitting model may identify more.",
        ]
    low, high = summary["noise"]["estimated_range"]
    return [
        f"About {percent(summary['noise']['estimated_rate'])} of {count(total)} labels are wrong"
        f" (range {percent(low)} to {percent(high)}). {count(summary['issues']['count'])} labels are label issues."
    ]


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """Return the key numbers of an audit."""
    noise, issues = summary["noise"], summary["issues"]
    if not summary["identifiable"]:
        out = [Tile("noise rate", "cannot tell", "")]
    else:
        low, high = noise["estimated_range"]
        out = [Tile("noise rate", percent(noise["estimated_rate"]), f"{percent(low)} to {percent(high)}")]
    threshold = issues["threshold"]
    note = "" if threshold is None else f"error probability {decimal(threshold, 2)} and above"
    out.append(Tile("label issues", count(issues["count"]), note))
    if duplicates := summary["duplicates"]:
        conflicts, leaks = count(duplicates["conflicting"]), count(duplicates["leaks"])
        note = f"pairs; {conflicts} with conflicting labels, {leaks} in two splits"
        out.append(Tile("near-duplicates", count(duplicates["pairs"]), note))
    if summary["outliers"] is not None:
        out.append(Tile("outliers", count(summary["outliers"]), "samples far from all neighbors"))
    if measured := summary.get("measured"):
        notes = [f"AUROC of the label scores {decimal(measured['auroc'])}"]
        if measured["precision"] is not None:
            notes.append(f"precision {percent(measured['precision'])}, recall {percent(measured['recall'])}")
        out.append(Tile("true noise rate", percent(measured["true_rate"]), "; ".join(notes)))
    return out


def _table(path: Path, limit: int) -> list[dict[str, Any]]:
    import pandas as pd

    if not path.is_file() or path.stat().st_size < 3:
        return []
    frame = pd.read_csv(path, dtype={"true": str, "given": str, "id": str, "other_id": str}, keep_default_na=False)
    if path.name == "by_class.csv":
        frame = frame.rename(columns={frame.columns[0]: "name"}).sort_values("rate", ascending=False)
    rows: list[dict[str, Any]] = frame.head(limit).to_dict("records")  # type: ignore[assignment]
    return rows
