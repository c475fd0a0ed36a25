"""Run study 1 of docs/results-nmtune.md: the effect of noise in the pre-training, and remedies.

    python benchmarks/upstream_noise.py --out runs/upstream

A small ResNet is pre-trained from random weights on the first 40,000 images of CIFAR-10's training set, at 32 px: with
0, 5, 10, 20 and 30 % wrong labels and with CIFAR-10N's (`human_worst`), 0 and 20 % with a second seed. Its frozen
features are then used for other tasks by a linear probe, MLP tuning and NMTune, three seeds each: the other 10,000
images, scikit-learn's digits, and the photographs of PACS, with paintings, cartoons and sketches out of domain.
Finished cells are kept, so the same command continues.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from cleantune.storage.files import write_text
from cleantune.studies.pretrain import pretrain
from cleantune.studies.transfer import Study, run, study_from_dict

SOURCE = 40_000
"""Images of the pre-training."""


@dataclass(frozen=True)
class Upstream:
    """One pre-training."""

    labels: str
    """`clean` labels with noise of a rate, or `human` labels."""
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        share = "human" if self.labels == "human" else f"{100 * self.rate:g}"
        return f"gamma-{share}-seed-{self.seed}"


UPSTREAM = (
    Upstream("clean", 0.0, 0), Upstream("clean", 0.2, 0), Upstream("clean", 0.3, 0), Upstream("clean", 0.1, 0),
    Upstream("clean", 0.05, 0), Upstream("human", 0.4, 0), Upstream("clean", 0.0, 1), Upstream("clean", 0.2, 1),
)  # fmt: skip
"""Pre-trainings in the order in which they run: the most informative first."""


def tables(out: Path, shared: Path) -> tuple[Path, Path]:
    """Write the 40,000 images of the pre-training and the 10,000 others as tables."""
    found = (out / "data" / "upstream.parquet", out / "data" / "downstream.parquet")
    if not all(path.is_file() for path in found):
        whole = pq.read_table(shared / "data" / "images" / "cifar10_train.parquet")
        found[0].parent.mkdir(parents=True, exist_ok=True)
        for path, part in zip(found, (whole.slice(0, SOURCE), whole.slice(SOURCE)), strict=True):
            draft = path.with_suffix(".tmp")
            pq.write_table(part, draft)
            draft.replace(path)
    return found


def backbone(one: Upstream, out: Path, shared: Path) -> Path:
    """Return the transformers folder of one pre-training, after running or continuing it."""
    folder = out / one.name
    noise = {"noise": f"symmetric:{one.rate:g}"} if one.labels == "clean" and one.rate else {}
    return pretrain(
        tables(out, shared)[0], out=folder, seed=one.seed, resume=folder.is_dir(),
        label="human_worst" if one.labels == "human" else "label", true_label="label", test_label="label",
        test=shared / "data" / "images" / "cifar10_test.parquet",
        precision="bfloat16",  # the same for all, whatever the machine is busy with
        **noise,
    ).model  # fmt: skip


def digits(out: Path) -> Path:
    """Write scikit-learn's 1,797 digits of 8 x 8 pixels as a table of images."""
    path = out / "data" / "digits.parquet"
    if not path.is_file():
        x, y = load_digits(return_X_y=True)
        rows = []
        for pixels, label in zip(x, y, strict=True):
            buffer = io.BytesIO()
            Image.fromarray((pixels.reshape(8, 8) * 255 / 16).round().astype(np.uint8)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": str(label)})
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        pq.write_table(pa.Table.from_pylist(rows), draft)
        draft.replace(path)
    return path


TITLE = "Noise in the pre-training of a small ResNet"
TUNINGS: list[dict[str, Any]] = [
    {"name": "LP", "method": "ce"},
    {"name": "MLP", "method": "mlp"},
    {"name": "NMTune", "method": "nmtune"},
]
PRESETS: list[dict[str, Any]] = [
    {"name": f"{name}, {preset}", "method": name.lower(), "preset": preset}
    for preset in ("paper", "official")
    for name in ("MLP", "NMTune")
]


def downstream(
    done: list[Upstream], out: Path, shared: Path, title: str, tunings: list[dict[str, Any]], noise: str = "none"
) -> Study:
    """Return the study of the finished backbones."""
    cifar, pacs = tables(out, shared)[1], shared / "data" / "images" / "pacs.parquet"
    return study_from_dict(
        {
            "title": title,
            "seeds": [0, 1, 2],
            "noises": [noise],
            "model": [
                {
                    "name": "human labels" if one.labels == "human" else f"{100 * one.rate:g} % wrong",
                    "model": str(out / one.name / "model"),
                    "gamma": -1.0 if one.labels == "human" else one.rate,
                    "seed": one.seed,
                }
                for one in sorted(done, key=lambda one: (one.labels == "human", one.rate, one.seed))
            ],
            "task": [
                {"name": "CIFAR-10", "data": {"data": str(cifar), "label": "label", "test_fraction": 0.2}},
                {"name": "digits", "data": {"data": str(digits(out)), "test_fraction": 0.2}},
                {
                    "name": "PACS photo",
                    "data": {"data": str(pacs), "label": "label"},
                    "domain_column": "domain",
                    "source": "photo",
                },
            ],
            "tuning": tunings,
        }
    )


def accuracies(done: list[Upstream], out: Path) -> str:
    """Return a table of the pre-trainings' accuracies on CIFAR-10's test set with true labels."""
    lines = ["| pre-training labels | seed | wrong | test accuracy | seconds |", "|---|---|---|---|---|"]
    for one in done:
        summary = json.loads((out / one.name / "summary.json").read_text(encoding="utf-8"))
        rate = summary["noise"]["rate"] if summary["noise"] else (0.402 if one.labels == "human" else 0.0)
        labels = "CIFAR-10N, worst" if one.labels == "human" else f"symmetric, {100 * one.rate:g} %"
        labels = labels if rate else "right"
        accuracy, seconds = summary["accuracy"]["test"], summary["seconds"]
        lines.append(f"| {labels} | {one.seed} | {rate:.1%} | {accuracy:.1%} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing pre-trainings, then the missing cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--no-pretrain", action="store_true", help="take the backbones that are there")
    parser.add_argument("--presets", action="store_true", help="MLP tuning and NMTune by both presets as well")
    args = parser.parse_args()
    tunings = TUNINGS + (PRESETS if args.presets else [])
    done: list[Upstream] = []
    for one in UPSTREAM:
        if not (args.out / one.name / "summary.json").is_file():
            if args.no_pretrain:
                continue
            backbone(one, args.out, args.shared)
        done.append(one)
        write_text(args.out / "pretraining.md", accuracies(done, args.out))
    if done:
        run(downstream(done, args.out, args.shared, TITLE, tunings), args.out / "downstream")


if __name__ == "__main__":
    main()
