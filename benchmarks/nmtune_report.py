"""The tables and figures of docs/results-nmtune.md, from the folders that the three studies wrote.

    python benchmarks/nmtune_report.py --upstream runs/upstream --ood runs/out_of_domain --both runs/both_noises

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced; a study without results keeps what is
there. Figures go to docs/images. The words around the tables are written by hand: read them again afterwards.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results-nmtune.md"
LINES = re.compile(r"^(\||\d+ of \d+ cells|## )")


def tables(path: Path) -> str | None:
    """Tables and headings of a results.md, headings one deeper; None where there is none."""
    if not path.is_file():
        return None
    out: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if LINES.match(line):
            out.append(f"#{line}" if line.startswith("## ") else re.sub(r"(\d+ of \d+ cells)\..*", r"\1.", line))
        elif out and out[-1]:
            out.append("")
    return "\n".join(out).strip()


def paired(path: Path, one: str = "NMTune", two: str = "LP") -> str:
    """By how much one tuning is ahead of another from a source to another domain, each the mean of its seeds."""
    rows = pd.read_parquet(path)
    rows = rows[rows["role"] == "ood"]
    score = rows.pivot_table(index=["task", "data", "domain"], columns="tuning", values="score")
    ahead = 100 * (score[one] - score[two])
    error = ahead.std() / len(ahead) ** 0.5
    return (
        f"{one} less {two} over the {len(ahead)} transfers, in points: mean {ahead.mean():+.2f},"
        f" standard error {error:.2f}, {(ahead > 0).sum()} of them above zero."
    )


def main() -> None:
    """Put what is there into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--ood", type=Path, default=Path("runs/out_of_domain"))
    parser.add_argument("--both", type=Path, default=Path("runs/both_noises"))
    said = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = said.upstream / "pretraining.md"
    found = {
        "pretraining": made.read_text(encoding="utf-8").strip() if made.is_file() else None,
        "upstream": tables(said.upstream / "downstream" / "results.md"),
        "texts": tables(said.ood / "texts" / "results.md"),
        "pictures": tables(said.ood / "pictures" / "results.md"),
        "both": tables(said.both / "results.md"),
    }
    for name in ("texts", "pictures"):
        if found[name] is not None:
            found[name] = f"{found[name]}\n\n{paired(said.ood / name / 'results.parquet')}"
    figures = sorted((said.upstream / "downstream").glob("figure-*.svg"))
    if found["upstream"] is not None:
        titles = {path: path.stem.replace("-", " ").capitalize() for path in figures}
        found["upstream"] += "".join(f"\n\n![{titles[p]}](images/upstream-{p.name})" for p in figures)
    for name, text in found.items():
        if text is None:
            print(f"{name}: no results yet")
            continue
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
        print(f"{name}: written")
    PAGE.write_text(page, encoding="utf-8")
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    for figure in figures:
        shutil.copy(figure, images / f"upstream-{figure.name}")
        print(f"{figure.name}: copied")


if __name__ == "__main__":
    main()
