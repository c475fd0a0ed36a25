"""The report of a run: one HTML file, made from the run folder alone and readable without a network."""

from __future__ import annotations

from pathlib import Path

__all__ = ["build"]


def build(run: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    Equal folders of equal name give equal bytes. Optional evidence that is absent costs its section, and the page
    says so.

    Args:
        run: A run folder with `config.toml`, `metrics.jsonl`, `summary.json` and `labels.parquet`.

    Raises:
        UserError: A required file is missing or cannot be read; the sentence names it and the remedy.
    """
    from cleantune.report.page import render, write
    from cleantune.storage.run_dir import RunDir

    folder = RunDir.read(Path(run))
    return write(folder.path / RunDir.REPORT, render(folder))
