"""Run the two matrices of docs/results.md: `robust` against CE and GCE in both scopes, with noisy and clean labels.

    python benchmarks/main_job.py --out runs/main_job

Every cell is a `cleantune.fit` in a folder of its own. Finished cells are kept, so the same command continues. CE and
GCE get the best of their learning rates by accuracy on the noisy validation split of seed 0; `robust` has its default
settings. The data and models are in `--shared`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cleantune

SEEDS = (0, 1, 2)
RATES = {"head": (1e-4, 3e-4, 1e-3), "all": (3e-4, 1e-3, 1e-4)}
"""Learning rates that are tried for CE and GCE, as many for each; the first is run first."""
METHODS = {
    "ce-head": ("ce", "head"),
    "gce-head": ("gce", "head"),
    "ce-all": ("ce", "all"),
    "gce-all": ("gce", "all"),
    "robust": ("robust", "all"),
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    data: str
    labels: str
    method: str
    scope: str
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        rate = "default" if self.rate is None else f"{self.rate:g}"
        return f"{self.data}-{self.labels}-{self.method}-{self.scope}-{rate}-{self.seed}"


def options(cell: Cell, shared: Path) -> dict[str, Any]:
    """Return the arguments of `fit` except method and seed."""
    model = shared / "models" / "mobilenet_v2_0.35"
    if cell.data == "cifar10":
        given = "human_worst" if cell.labels == "noisy" else "label"
        images = shared / "data" / "images"
        return {
            "data": images / "cifar10_train.parquet", "model": model, "label": given, "true_label": "label",
            "test": images / "cifar10_test.parquet", "test_label": "label", "limit": 10_000, "image_size": 64,
        }  # fmt: skip
    noise = {"noise": "symmetric:0.6"} if cell.labels == "noisy" else {}
    pacs = shared / "data" / "images" / "pacs.parquet"
    return {"data": pacs, "model": model, "label": "label", "test_fraction": 0.2, "image_size": 80} | noise


def run(cell: Cell, out: Path, shared: Path) -> dict[str, Any]:
    """Train a cell, or read its summary if it is finished, and return the summary."""
    folder = out / cell.name
    if (folder / "summary.json").is_file():
        return json.loads((folder / "summary.json").read_text())
    settings = {}
    if cell.rate is not None:
        stage = "probe" if cell.scope == "head" else "tune"
        settings[f"method.{stage}.learning_rate"] = cell.rate
        if cell.scope == "all":
            settings["method.tune.backbone_learning_rate"] = cell.rate
    data = options(cell, shared)
    result = cleantune.fit(
        data.pop("data"), str(data.pop("model")), out=folder, method=cell.method, scope=cell.scope, seed=cell.seed,
        settings=settings, resume=folder.is_dir(), quiet=True, **data,
    )  # fmt: skip
    return result.summary


def best_rate(data: str, labels: str, method: str, scope: str, out: Path, shared: Path, rates: int) -> float | None:
    """Return the learning rate with the best accuracy on the noisy validation split of seed 0."""
    if method == "robust":
        return None
    tried = {
        rate: run(Cell(data, labels, method, scope, rate, 0), out, shared)["accuracy"]["validation"]
        for rate in RATES[scope][: rates if scope == "all" else None]
    }
    return max(tried, key=lambda rate: tried[rate])


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table: mean ± standard deviation over seeds, in percent."""
    out = [
        "| data | labels | method | rate | seeds | last | best | validation | cost / N | AUROC | purity | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r["data"], r["labels"], r["method"], r["scope"]) for r in rows))
    for key in keys:
        mine = [r for r in rows if (r["data"], r["labels"], r["method"], r["scope"]) == key]

        def over(name: str, scale: float = 100.0, digits: int = 2, mine: list[dict[str, Any]] = mine) -> str:
            values = [r[name] * scale for r in mine if r[name] is not None]
            return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}" if values else "–"

        label = f"{key[2].upper()} {'LP' if key[3] == 'head' else 'FFT'}" if key[2] != "robust" else "**Robust**"
        rate = "default" if mine[0]["rate"] is None else f"{mine[0]['rate']:g}"
        out.append(
            f"| {key[0]} | {key[1]} | {label} | {rate} | {len(mine)} | {over('last')} | {over('best')} |"
            f" {over('validation')} | {over('cost', 1, 1)} | {over('auroc', 1, 3)} | {over('purity', 1, 3)} |"
            f" {over('seconds', 1, 0)} |"
        )
    return out


def row(cell: Cell, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of one cell."""
    return {
        "data": cell.data, "labels": cell.labels, "method": cell.method, "scope": cell.scope, "rate": cell.rate,
        "seed": cell.seed, "last": summary["accuracy"]["test"], "best": summary["accuracy"]["best_validation"],
        "validation": summary["accuracy"]["validation"],
        "cost": summary["cost"]["forward_passes"] / summary["samples"]["train"],
        "auroc": summary["issues"].get("auroc"), "purity": summary["selection"].get("purity"),
        "seconds": summary["cost"]["seconds"]["total"], "selected_model": summary["selected_model"],
        "estimated_rate": summary["noise"]["estimated_rate"], "true_rate": summary["noise"].get("true_rate"),
        "processor": summary["versions"]["processor"],
    }  # fmt: skip


def main() -> None:
    """Run the missing cells and write results.json and results.md after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--labels", default="noisy,clean")
    parser.add_argument("--data", default="cifar10,pacs")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried for fine-tuning (default: 3)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for labels in args.labels.split(","):
        for data in args.data.split(","):
            for method, scope in (METHODS[name] for name in args.methods.split(",")):
                rate = best_rate(data, labels, method, scope, args.out, args.shared, args.rates)
                for seed in SEEDS:
                    cell = Cell(data, labels, method, scope, rate, seed)
                    rows.append(row(cell, run(cell, args.out, args.shared)))
                    print(cell.name, f"{rows[-1]['last']:.4f}", flush=True)
                    (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
                    (args.out / "results.md").write_text("\n".join(lines(rows)) + "\n")


if __name__ == "__main__":
    main()
