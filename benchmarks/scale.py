"""Simulate sizes beyond a test machine: the numbers of docs/scale.md that no `fit` measures.

    python benchmarks/scale.py mixture --samples 100_000_000 --classes 1000
    python benchmarks/scale.py index --rows 1_000_000_000
    python benchmarks/scale.py steps
    python benchmarks/scale.py table

`mixture` fits one mixture per class, selects and balances, in blocks of classes over losses on disk, and checks a block
against the fit of all classes at once on fewer samples. `index` writes a store of this many rows (sparse files of width
1), opens it and reads random rows. `steps` times a training step of a head and states the size of the message that
dividing it would need. `table` computes hours, disk, network and memory of five data sets from the constants above it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cleantune.features.cache import find_features
from cleantune.features.shards import SHARD_ROWS, shard_name, write_index
from cleantune.functional.gmm import fit_class_mixtures
from cleantune.functional.selection import balance_classes, parse_balance, rescue_small_classes
from cleantune.training.heads import LinearHead
from cleantune.utils.malloc import peak_bytes

TAU = 0.3


def say(**numbers: object) -> None:
    print(json.dumps(numbers), flush=True)


def synthetic(
    folder: Path, samples: int, classes: int, block: int = 5_000_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write losses, given labels and whether they are right to disk; 40 % of the labels are wrong."""
    rng = np.random.default_rng(0)
    loss, y, right = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (samples,))
        for name, kind in (("loss", np.float32), ("y", np.int16), ("right", np.bool_))
    )
    for start in range(0, samples, block):
        end = min(start + block, samples)
        good = rng.random(end - start) > 0.4
        right[start:end], y[start:end] = good, rng.integers(0, classes, end - start)
        loss[start:end] = np.where(good, rng.gamma(2.0, 0.4, end - start), 4 + rng.normal(0, 1.2, end - start)).clip(0)
    return loss, y, right


def select(loss: torch.Tensor, y: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return TURN's clean probabilities and selection for some classes."""
    p_clean = fit_class_mixtures(loss, y, classes, max_iter=10, tol=1e-2).posterior(loss, y)
    keep = rescue_small_classes(p_clean > TAU, loss, y, classes)
    return p_clean, balance_classes(keep, y, classes, parse_balance("all"), torch.Generator().manual_seed(0))


def mixture(samples: int, classes: int, blocks: int) -> None:
    """Fit mixtures in blocks of classes; classes are fitted alone, so blocks change nothing."""
    with tempfile.TemporaryDirectory() as name:
        loss, y, right = synthetic(Path(name), samples, classes)
        start, kept, hits = time.perf_counter(), 0, 0
        for low in range(0, classes, -(-classes // blocks)):
            high = min(low + -(-classes // blocks), classes)
            members = np.flatnonzero((y >= low) & (y < high))
            own_y = torch.from_numpy(y[members].astype(np.int64) - low)
            _, keep = select(torch.from_numpy(loss[members]), own_y, high - low)
            kept, hits = kept + int(keep.sum()), hits + int(right[members][keep.numpy()].sum())
        seconds = time.perf_counter() - start
        say(what="mixture", samples=samples, classes=classes, blocks=blocks, seconds=round(seconds, 1),
            nanoseconds_a_sample=round(1e9 * seconds / samples), peak_gib=round(peak_bytes() / 2**30, 2), kept=kept,
            purity=round(hits / kept, 4))  # fmt: skip
        few = min(samples, 2_000_000)
        own, labels = torch.from_numpy(loss[:few].copy()), torch.from_numpy(y[:few].astype(np.int64))
        full, _ = select(own, labels, classes)
        mine = labels < classes // blocks
        part, _ = select(own[mine], labels[mine], classes // blocks)
        say(what="a block against all classes", largest_difference=float((full[mine] - part).abs().max()))


def index(rows: int) -> None:
    """Measure a store of sparse shards: writing and opening its index, and reading rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "features-k"
        folder.mkdir()
        np.save(folder / shard_name(0), np.zeros((SHARD_ROWS, 1), np.float32))
        head = (folder / shard_name(0)).read_bytes()[:128]
        count = -(-rows // SHARD_ROWS)
        start = time.perf_counter()
        for k in range(count):
            with (folder / shard_name(k)).open("wb") as file:
                file.write(head if (k + 1) * SHARD_ROWS <= rows else b"\x93NUMPY\x01\x00" + head[8:])
                file.truncate(128 + 4 * SHARD_ROWS)
        made = time.perf_counter() - start
        start = time.perf_counter()
        write_index(folder, rows, 1, {})
        written = time.perf_counter() - start
        start = time.perf_counter()
        features = find_features(Path(name), "k")
        opened = time.perf_counter() - start
        assert features is not None
        chosen = np.random.default_rng(0).integers(0, rows - SHARD_ROWS, 4096)
        start = time.perf_counter()
        read = features[chosen]
        seconds = time.perf_counter() - start
        size = (folder / "index.json").stat().st_size
        say(what="index", rows=rows, shards=count, index_megabytes=round(size / 1e6, 1),
            seconds_to_make=round(made, 1), seconds_to_write=round(written, 2), seconds_to_open=round(opened, 2),
            rows_read=len(read), seconds_to_read=round(seconds, 2),
            peak_gib=round(peak_bytes() / 2**30, 2))  # fmt: skip


def steps(width: int = 768, batch: int = 128) -> None:
    """Time a step of a head, against the message of about 25 microseconds that dividing it would need."""
    for classes in (10, 100, 1000, 21_841):
        head = LinearHead(width, classes)
        optimizer = torch.optim.AdamW(head.parameters(), fused=True)
        x, y = torch.randn(batch, width), torch.randint(classes, (batch,))
        times = []
        for _ in range(12):
            start = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(head(x).logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
        say(what="step of a head", classes=classes, width=width, batch=batch, threads=torch.get_num_threads(),
            milliseconds=round(1e3 * float(np.median(times)), 2),
            gradient_megabytes=round(4e-6 * classes * (width + 1), 2))  # fmt: skip


SETS = {
    "CIFAR-100": (50_000, 100, 0.002),
    "Clothing1M": (1_000_000, 14, 0.03),
    "WebVision 1.0": (2_400_000, 1000, 0.12),
    "ImageNet-21k": (14_200_000, 21_841, 0.09),
    "1 B samples": (1_000_000_000, 1000, 0.05),
}
"""Samples, classes, megabytes of an image as stored (assumed)."""
FORWARD_PASSES = 1500.0
"""Forward passes of ViT-B/16 per second at 224 px on one H100 in bfloat16: assumed, not measured."""
MIXTURE = 4400e-9
"""Seconds per sample of mixture and selection: `mixture` above on one thread of a busy machine."""
WIDTH, PIXELS, BUDGET, ROUNDS = 768, 3 * 224 * 224, 3.5, 2
"""Feature dimensions of ViT-B/16, bytes of an image in the pixel cache, and sample visits and rounds of `robust`."""


def table(gpus: int = 8) -> None:
    """Print the costs of `robust`: a pass for features, `BUDGET` visits of 3 passes, and a pass after each round.

    Three columns have a number per class: the statistics of the probe (two) and the targets of ELR.
    """
    for name, (n, classes, megabytes) in SETS.items():
        forward_passes = n * (1 + 3 * BUDGET + ROUNDS)
        hours = forward_passes / FORWARD_PASSES / 3600
        say(data=name, samples=n, forward_passes=forward_passes, gpu_hours=round(hours, 1),
            hours_on_gpus=round(hours / gpus, 2), gpus=gpus,
            mixtures_minutes=round(ROUNDS * n * MIXTURE / 60, 2),
            images_gb=round(n * megabytes / 1e3, 1), pixels_gb=round(n * PIXELS / 1e9, 1),
            features_gb=round(4 * n * WIDTH / 1e9, 1), losses_gb_a_rank=round(8 * n * 5 / 1e9, 2),
            ledger_p_gb_a_rank=round(3 * 4 * n * classes / 1e9, 1),
            labels_gb_a_rank=round((8 + 8 + 8) * n / 1e9, 2))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb")
    one = verbs.add_parser("mixture")
    one.add_argument("--samples", type=int, default=2_000_000)
    one.add_argument("--classes", type=int, default=1000)
    one.add_argument("--blocks", type=int, default=25)
    two = verbs.add_parser("index")
    two.add_argument("--rows", type=int, default=10_000_000)
    verbs.add_parser("steps")
    verbs.add_parser("table")
    args = vars(parser.parse_args())
    verb = args.pop("verb")
    for each in [verb] if verb else ["mixture", "index", "steps", "table"]:
        chosen = {"mixture": mixture, "index": index, "steps": steps, "table": table}[each]
        chosen(**(args if verb else {"mixture": {"samples": 2_000_000, "classes": 1000, "blocks": 25},
                                     "index": {"rows": 10_000_000}}.get(each, {})))  # fmt: skip
