"""What noise in the pre-training does, and what is done about it: study 1 of docs/results-nmtune.md.

    python benchmarks/upstream_noise.py --out runs/upstream

A small ResNet is pre-trained from random weights on the first 40,000 images of CIFAR-10's training set, at 32 px: with
0, 5, 10, 20 and 30 % wrong labels and with CIFAR-10N's (`human_worst`), 0 and 20 % with a second seed. Its frozen
features then serve other tasks, by a linear probe, MLP tuning and NMTune, three seeds each: the other 10,000 images,
scikit-learn's digits, and the photographs of PACS, from which paintings, cartoons and sketches are out of domain. What
is finished is kept, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from cleantune.pretraining import pretrain

SOURCE = 40_000
"""Images that backbones are pre-trained on."""


@dataclass(frozen=True)
class Upstream:
    """One pre-training."""

    labels: str
    """`clean` with noise of a rate, or `human`."""
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        share = "human" if self.labels == "human" else f"{100 * self.rate:g}"
        return f"gamma-{share}-seed-{self.seed}"


UPSTREAM = (
    Upstream("clean", 0.0, 0), Upstream("clean", 0.2, 0), Upstream("clean", 0.3, 0), Upstream("clean", 0.1, 0),
    Upstream("clean", 0.05, 0), Upstream("human", 0.4, 0), Upstream("clean", 0.0, 1), Upstream("clean", 0.2, 1),
)  # fmt: skip
"""In the order in which they run: what is most worth knowing first."""


def tables(out: Path, shared: Path) -> tuple[Path, Path]:
    """The 40,000 images of the pre-training and the 10,000 that are left, as tables."""
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
    """The transformers folder of one pre-training, which is finished where it is not yet."""
    folder = out / one.name
    noise = {"noise": f"symmetric:{one.rate:g}"} if one.labels == "clean" and one.rate else {}
    return pretrain(
        tables(out, shared)[0], out=folder, seed=one.seed, resume=folder.is_dir(),
        label="human_worst" if one.labels == "human" else "label", true_label="label", test_label="label",
        test=shared / "data" / "images" / "cifar10_test.parquet",
        precision="bfloat16",  # the same for all, whatever the machine is busy with
        **noise,
    ).model  # fmt: skip


def main() -> None:
    """Pre-train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    said = parser.parse_args()
    for one in UPSTREAM:
        backbone(one, said.out, said.shared)


if __name__ == "__main__":
    main()
