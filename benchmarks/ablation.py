"""Ablation of the method `robust`: each row leaves out one part, on two data sets with three seeds.

    python benchmarks/ablation.py --out runs/ablation

The data are 5,000 images each of PACS with symmetric noise (0.6) and of CIFAR-10 with human labels (`human_worst`);
`--limit 10000` takes as many as benchmarks/main_job.py does. Every cell is a `cleantune.fit` in a folder of its own.
Finished cells are kept, so the same command continues after an interruption; ablation.json and ablation.md are written
after each cell. The fallback to the first probe is off, so that a row shows what its method ends with.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from main_job import Cell, options

import cleantune

SEEDS = (0, 1, 2)
DATA = ("pacs", "cifar10")


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    """Folder name."""
    text: str
    """First column of the table."""
    method: str = "robust"
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings below `method` that differ from the defaults."""


VARIANTS = (
    Variant("robust", "robust"),
    Variant("trust-all", "no selection: every label is trusted", settings={"select": "all"}),
    Variant("no-elr", "no ELR: cross-entropy in fine-tuning and in the final probe", settings={"elr_lambda": 0.0}),
    Variant("no-final-probe", "no probe after tuning", settings={"probe_after_tuning": False}),
    Variant("no-class-balance", "no class balance", settings={"class_balance": 0.0}),
    Variant("one-round", "one round of selection", settings={"tune.epochs": 1}),
    Variant("no-flip-rule", "no flip-concentration rule", settings={"flip_concentration_threshold": 1.0}),
    Variant("weak-decay", "usual weight decay in the final probe", settings={"probe_weight_decay": 3e-8}),
    Variant("ce-probe", "cross-entropy instead of GCE in the first probe", settings={"q": 0.0}),
    Variant("half-visits", "half of the sample visits", settings={"tune_visits": 1.75}),
    Variant("turn", "TURN (loss mixtures, strict balance, no ELR, no probe after tuning)", "turn"),
)


def run_cell(variant: Variant, data: str, seed: int, out: Path, shared: Path, limit: int) -> dict[str, Any]:
    """Train one cell, or read its summary if it is finished, and return its numbers."""
    folder = out / f"{data}-{variant.name}-{seed}"
    if (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text())
    else:
        arguments = options(Cell(data, "noisy", variant.method, "all", None, seed), shared) | {"limit": limit}
        settings = {f"method.{key}": value for key, value in variant.settings.items()} | {
            "run.fallback_to_probe": False
        }
        summary = cleantune.fit(
            arguments.pop("data"), str(arguments.pop("model")), out=folder, method=variant.method, scope="all",
            seed=seed, settings=settings, resume=folder.is_dir(), quiet=True, **arguments,
        ).summary  # fmt: skip
    return {
        "variant": variant.name, "data": data, "seed": seed, "accuracy": summary["accuracy"]["test"],
        "purity": summary["selection"].get("purity"), "recall": summary["selection"].get("recall"),
        "auroc": summary["selection"].get("auroc"),
        "cost": summary["cost"]["forward_passes"] / summary["samples"]["train"],
        "seconds": summary["cost"]["seconds"]["total"],
    }  # fmt: skip


def format_table(rows: list[dict[str, Any]]) -> str:
    """Format a Markdown table: accuracy in percent (mean ± standard deviation over seeds) and paired differences.

    The difference to `robust` pairs the seeds; its ± is the standard error of the mean.
    """
    names = [data for data in DATA if any(row["data"] == data for row in rows)]
    header = [
        "variant",
        *(f"{d} {column}" for d in names for column in ("accuracy", "difference", "AUROC", "cost / N")),
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for variant in VARIANTS:
        line = [variant.text]
        for data in names:
            cells = {row["seed"]: row for row in rows if (row["variant"], row["data"]) == (variant.name, data)}
            full = {row["seed"]: row for row in rows if (row["variant"], row["data"]) == ("robust", data)}
            line += format_cells(cells, full)
        if any(text != "–" for text in line[1:]):
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def format_cells(cells: dict[int, dict[str, Any]], full: dict[int, dict[str, Any]]) -> list[str]:
    """Format the four columns of one variant on one data set.

    Args:
        cells: Cells of the variant by seed.
        full: Cells of `robust` by seed.
    """
    if not cells:
        return ["–"] * 4
    accuracy = np.array([100 * cell["accuracy"] for cell in cells.values()])
    pairs = np.array([100 * (cells[seed]["accuracy"] - full[seed]["accuracy"]) for seed in cells if seed in full])
    error = f" ± {pairs.std(ddof=1) / len(pairs) ** 0.5:.1f}" if len(pairs) > 1 else ""
    aurocs = [cell["auroc"] for cell in cells.values() if cell["auroc"] is not None]
    return [
        f"{accuracy.mean():.1f} ± {accuracy.std():.1f}",
        "–" if cells is full or not len(pairs) or not pairs.any() else f"{pairs.mean():+.1f}{error}",
        f"{np.mean(aurocs):.3f}" if aurocs else "–",
        f"{np.mean([cell['cost'] for cell in cells.values()]):.1f}",
    ]


def main() -> None:
    """Run the missing cells and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--variants", default=",".join(variant.name for variant in VARIANTS))
    parser.add_argument("--limit", type=int, default=5000, help="training images drawn of each set (default: 5000)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [variant for variant in VARIANTS if variant.name in args.variants.split(",")]
    rows: list[dict[str, Any]] = []
    for seed in map(int, args.seeds.split(",")):
        for data in args.data.split(","):
            for variant in chosen:
                rows.append(run_cell(variant, data, seed, args.out, args.shared, args.limit))
                print(f"{data} {variant.name} seed {seed}: {100 * rows[-1]['accuracy']:.1f} %", flush=True)
                (args.out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n")
                (args.out / "ablation.md").write_text(format_table(rows))


if __name__ == "__main__":
    main()
