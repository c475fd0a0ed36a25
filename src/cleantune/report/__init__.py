"""Report of a run: one HTML file, built from the run folder alone, that needs no network.

The package also has what the pages of audits and studies share: page head and CSS (`base.html`, `page.css`), sections
(`macros.html`), figures as inline SVG, and `templates.render_page`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["build_report"]


def build_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run.

    Equal folders of equal name give equal bytes. A missing optional artifact removes its section; the page states it.

    Args:
        run: Run folder with `config.toml`, `metrics.jsonl`, `summary.json` and `labels.parquet`.

    Returns:
        Path of the report.

    Raises:
        UserError: A required file is missing or cannot be read; the message names it and the remedy.
    """
    from cleantune.report.page import render
    from cleantune.storage.files import write_text
    from cleantune.storage.run_dir import RunDir

    folder = RunDir.read(Path(run))
    page = render(folder)
    path = folder.path / RunDir.REPORT
    write_text(path, page)
    return path
