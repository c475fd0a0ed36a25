"""Measure the gain of keeping freed memory in the process: feature extraction by torch, in alternating processes.

    python benchmarks/pages.py --model ../shared/models/mobilenet_v2_1.0 --size 96
    python benchmarks/pages.py --model ../shared/models/mobilenet_v2_0.35 --size 64

Prints images/s in float32, the median over the pairs and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from cleantune.backbones import open_backbone
from cleantune.features.backend import InferenceBackend
from cleantune.features.encoder import Encoder
from cleantune.features.precision import Precision
from cleantune.utils.malloc import keep_pages

PASSES = 5


def rate(model: Path, size: int, batch_size: int, keeps: bool) -> float:
    """Return images/s of the median pass over two batches of noise, after one that is not timed."""
    if keeps:
        keep_pages()
    backbone = open_backbone(str(model), image_size=size)
    backbone.eval().to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (batch_size, 3, size, size), generator=torch.Generator().manual_seed(0))
    x = backbone.preprocess.normalize(pixels.to(torch.uint8))  # type: ignore[union-attr]
    program = Encoder(backbone, InferenceBackend("torch", Precision(channels_last=True)))
    taken = []
    for _ in range(PASSES + 1):
        start = time.perf_counter()
        list(program.stream(iter([([0], x), ([1], x)])))
        taken.append(time.perf_counter() - start)
    return 2 * batch_size / statistics.median(taken[1:])


def main() -> None:
    """Run pairs of processes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True, help="pixels of a side")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    pairs = []
    for _ in range(args.pairs):
        pair = []
        for keeps in (False, True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                pair.append(alone.submit(rate, args.model, args.size, args.batch_size, keeps).result())
        pairs.append(pair)
    without, kept = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(after / before for before, after in pairs)
    print(f"as the system has it {without:6.0f} images/s")
    print(f"kept                 {kept:6.0f} images/s")
    print(f"ratio                {statistics.median(ratios):6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
