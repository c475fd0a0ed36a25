"""One audit under review: its suspects, their samples, and the decisions so far."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.audit.tables import suspects
from cleantune.config.run import configure, read_config
from cleantune.data import Data, UnreadableImage
from cleantune.errors import UserError
from cleantune.pipeline.artifacts import thumbnail
from cleantune.pipeline.resolve import load_data
from cleantune.review.decisions import DECISIONS, Decision, Decisions
from cleantune.storage.files import read_json
from cleantune.storage.run_dir import RunDir
from cleantune.utils.console import Console

PAGE_SIZE = 60
MAX_PAGE_SIZE = 200
MAX_PAIRS = 200
"""Pairs of given and suggested label that the page offers as filters."""
MAX_TEXT = 2_000
"""Characters of a text that are shown."""


class ReviewSession:
    """State of one review."""

    def __init__(self, run: Path, decisions: Path | None = None) -> None:
        """Open the folder of an audit or of a run.

        Args:
            run: The folder.
            decisions: File of decisions; None takes `decisions.csv` in the folder.

        Raises:
            UserError: The folder has no labels, or its data cannot be read.
        """
        import pandas as pd

        if not (run / RunDir.LABELS).is_file():
            raise UserError(f"{run} has no {RunDir.LABELS}: name the folder of an audit or of a run")
        self.run = run
        self.summary = read_json(run / RunDir.SUMMARY)
        self.rows = suspects(pd.read_parquet(run / RunDir.LABELS)).reset_index(drop=True)
        for column in ("given_label", "suggested_label", "id", "split"):
            self.rows[column] = self.rows[column].astype(str)
        self.decisions = Decisions(decisions or run / "decisions.csv")
        self.classes = [str(name) for name in self.summary["class_names"]]
        self.data = _read_data(run)
        self.place: dict[str, tuple[str, int]] = {}
        """Split and row of each sample by id."""
        if self.data is not None:
            for split in ("unlabeled", "test", "validation", "train"):
                if split in self.data.rows:
                    self.place |= {str(i): (split, k) for k, i in enumerate(self.data.rows[split].ids.tolist())}
        near = run / RunDir.NEIGHBORS
        self._neighbors = (
            pd.read_parquet(near).assign(id=lambda t: t["id"].astype(str)).set_index("id") if near.is_file() else None
        )

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """Return some suspects with their number.

        Args:
            query: Filters by `given`, `suggested`, `low` and `high` score, `open` (undecided only); `limit` rows from
                `offset`.
        """
        rows, keep = self.rows, np.ones(len(self.rows), dtype=bool)
        for column in ("given", "suggested"):
            if query.get(column):
                keep &= (rows[f"{column}_label"] == query[column]).to_numpy()
        score = rows["label_score"].to_numpy()
        keep &= (score >= number_of(query, "low", 0.0)) & (score <= number_of(query, "high", 1.0))
        current = self.decisions.current
        if query.get("open"):
            keep &= np.array(
                [(s, i) not in current for s, i in zip(rows["split"], rows["id"], strict=True)], dtype=bool
            )
        chosen = np.flatnonzero(keep)
        offset = max(0, int(number_of(query, "offset", 0)))
        limit = min(MAX_PAGE_SIZE, max(1, int(number_of(query, "limit", PAGE_SIZE))))
        cards = [self._card(int(k), current) for k in chosen[offset : offset + limit]]
        return {"total": len(chosen), "offset": offset, "rows": cards}

    def _card(self, k: int, current: dict[tuple[str, str], Decision]) -> dict[str, Any]:
        row = self.rows.iloc[k]
        decision = current.get((row["split"], row["id"]))
        return {
            "row": k,
            "id": row["id"],
            "split": row["split"],
            "given": row["given_label"],
            "suggested": row["suggested_label"],
            "score": float(row["label_score"]),
            "p_wrong": float(row["p_wrong"]) if "p_wrong" in row else None,
            "text": self.text(row["id"]),
            "image": self._has_images,
            "decision": None if decision is None else decision.decision,
            "label": None if decision is None else decision.label,
        }

    @property
    def _has_images(self) -> bool:
        return self.data is not None and self.data.kind == "image"

    def text(self, sample_id: str) -> str | None:
        """Return the text of a sample, None where it has none."""
        if self.data is None or self.data.kind != "text" or sample_id not in self.place:
            return None
        split, k = self.place[sample_id]
        return str(self.data.rows[split].samples.read([k])[0])[:MAX_TEXT]

    def neighbors(self, k: int) -> list[dict[str, Any]]:
        """Return the nearest samples whose labels are trusted.

        Raises:
            UserError: There is no such row.
        """
        if not 0 <= k < len(self.rows):
            raise UserError(f"there is no row {k}")
        sample_id = self.rows.iloc[k]["id"]
        if self._neighbors is None or sample_id not in self._neighbors.index:
            return []
        near = self._neighbors.loc[sample_id]
        return [
            {"id": other, "label": label, "text": self.text(other), "image": self._has_images}
            for other, label in zip(near["neighbors"], near["labels"], strict=True)
        ]

    def picture(self, sample_id: str) -> bytes | None:
        """Return the thumbnail of a sample as JPEG, None where there is none."""
        if not self._has_images or sample_id not in self.place:
            return None
        assert self.data is not None
        split, k = self.place[sample_id]
        image = self.data.rows[split].samples.read([k])[0]
        return None if isinstance(image, UnreadableImage) else base64.b64decode(thumbnail(image).partition(",")[2])

    def image_file(self, sample_id: str) -> str | None:
        """Return the path of the image of a sample, None where it is not in a file of its own."""
        if not self._has_images or sample_id not in self.place:
            return None
        assert self.data is not None
        split, k = self.place[sample_id]
        path = self.data.rows[split].samples.describe(k)
        return path if Path(path).is_file() else None

    def decide(self, k: Any, decision: Any, label: Any) -> dict[str, Any]:
        """Keep a decision and return the progress.

        Args:
            k: Row of the suspect.
            decision: One of `DECISIONS` but `undo`.
            label: New label of a `relabel`; None takes the suggested one.

        Raises:
            UserError: An unknown row, decision or class.
        """
        if not isinstance(k, int) or not 0 <= k < len(self.rows):
            raise UserError(f"there is no row {k!r}")
        if decision not in DECISIONS[:-1]:
            raise UserError(f"{decision!r} is no decision; known: {', '.join(DECISIONS[:-1])}")
        row = self.rows.iloc[k]
        new = str(label or row["suggested_label"]) if decision == "relabel" else ""
        if new and new not in self.classes:
            raise UserError(f"{label!r} is no class of this audit")
        self.decisions.add(Decision(row["id"], row["split"], row["given_label"], decision, new))
        return self.state()

    def undo(self) -> dict[str, Any]:
        """Take the last decision back and return the progress with its row."""
        last = self.decisions.undo()
        rows: Any = []
        if last is not None:
            rows = np.flatnonzero((self.rows["id"] == last.id) & (self.rows["split"] == last.split))
        return self.state() | {"row": int(rows[0]) if len(rows) else None}

    def state(self) -> dict[str, Any]:
        """Return the progress of the review."""
        return self.decisions.progress() | {"suspects": len(self.rows)}

    def about(self) -> dict[str, Any]:
        """Return what the page shows once: name, classes, pairs of labels, and whether errors are identifiable."""
        sizes = self.rows.groupby(["given_label", "suggested_label"]).size()
        pairs = sizes.sort_values(ascending=False).head(MAX_PAIRS)
        identifiable = self.summary.get("identifiable", self.summary.get("noise", {}).get("identifiable", True))
        return {
            "name": self.run.name,
            "classes": self.classes,
            "pairs": [{"given": g, "suggested": s, "count": int(n)} for (g, s), n in pairs.items()],
            "identifiable": identifiable,
            "file": str(self.decisions.path),
        }


def _read_data(run: Path) -> Data | None:
    """Return the data of a run, None where they were arrays."""
    table = read_config(run / RunDir.CONFIG)
    return load_data(configure(table), Console(quiet=True))[0] if "data" in table else None


def number_of(query: dict[str, str], key: str, default: float) -> float:
    """Return the number under a key of a query.

    Raises:
        UserError: It is no number.
    """
    try:
        return float(query.get(key) or default)
    except ValueError:
        raise UserError(f"{key} is {query[key]!r}; it must be a number") from None
