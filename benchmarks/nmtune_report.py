"""Write the tables and figures of docs/results-nmtune.md from the folders of the three studies.

    python benchmarks/nmtune_report.py --upstream runs/upstream --ood runs/out_of_domain --both runs/both_noises

The text between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced, unless the study has no results. Figures go
to docs/images. The text around the tables is written by hand: review it afterwards.
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
    """Return tables and headings of a results.md, with headings one level deeper; None without the file."""
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
    """Return the lead of one tuning over another out of domain, as means over seeds, in a sentence."""
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
    """Write the results so far into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--ood", type=Path, default=Path("runs/out_of_domain"))
    parser.add_argument("--both", type=Path, default=Path("runs/both_noises"))
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = args.upstream / "pretraining.md"
    found = {
        "pretraining": made.read_text(encoding="utf-8").strip() if made.is_file() else None,
        "upstream": tables(args.upstream / "downstream" / "results.md"),
        "texts": tables(args.ood / "texts" / "results.md"),
        "pictures": tables(args.ood / "pictures" / "results.md"),
        "both": tables(args.both / "results.md"),
    }
    for name in ("texts", "pictures"):
        if found[name] is not None:
            found[name] = f"{found[name]}\n\n{paired(args.ood / name / 'results.parquet')}"
    figures = sorted((args.upstream / "downstream").glob("figure-*.svg"))
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
