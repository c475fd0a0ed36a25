"""Time the probe and the mixtures on features on disk, up to 2.4 million rows.

    python benchmarks/probe_scale.py --rows 2400000 --classes 1000 --epochs 1 --folder /tmp/features

Prints a JSON object with seconds and the peak of resident memory in GB (1e9 bytes), mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ours import mixtures, probe, synthetic

from cleantune.functional import losses
from cleantune.utils.malloc import keep_pages, peak_bytes

WIDTH = 768


def once(rows: int, classes: int, epochs: int, folder: Path) -> float:
    """Return the seconds of a probe and of mixtures over its losses, without writing the features."""
    features, y = synthetic(folder, rows, WIDTH, classes)
    start = time.perf_counter()
    run = probe(features, y, classes, epochs)
    mixtures(run.score(lambda y, logits: losses.cross_entropy(logits, y), *run.nets), y, classes)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_400_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    keep_pages()  # as every run does
    seconds = once(args.rows, args.classes, args.epochs, args.folder)
    print(json.dumps({"seconds": round(seconds, 1), "peak_gb": round(peak_bytes() / 1e9, 2)}))


if __name__ == "__main__":
    main()
