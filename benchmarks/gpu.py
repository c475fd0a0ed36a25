"""Measure extraction and full fine-tuning on one CUDA GPU: images/s and model FLOPs utilization.

    python benchmarks/gpu.py --json gpu.json

ViT-B/16 and ConvNeXt-T with random weights on random pixels of 224 px, in bfloat16. Model FLOPs utilization is the
network's multiplications and additions per second (three times as many in training), as a fraction of those of a large
matrix product measured here. Targets: 60 % in extraction, 45 % in fine-tuning. Each result is written at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cleantune.backbones import ARCHITECTURES, Backbone, quiet_transformers
from cleantune.features.backend import InferenceBackend
from cleantune.features.encoder import encode
from cleantune.features.precision import Precision
from cleantune.functional.losses import cross_entropy
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model

SIDE, CLASSES, PRECISION = 224, 1000, Precision("bfloat16", True)


def network(name: str) -> Backbone:
    """Return a backbone with random weights, as `open_backbone` would open it."""
    with quiet_transformers():
        import transformers

        if name == "vit_b16":
            hf: nn.Module = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
            kind, width = "vit", 768
        else:
            hf, kind, width = transformers.ConvNextModel(transformers.ConvNextConfig()), "convnext", 768
    known = ARCHITECTURES[kind]
    return Backbone(hf, known, width=width, preprocess=None, source=name, pooling=known.pooling)


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median of three mean times of a call."""
    for _ in range(3):
        run()
    found = []
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        _wait(device)
        found.append((time.perf_counter() - start) / repeats)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceiling(device: torch.device, side: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the FLOP/s of a large matrix product."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds(lambda: a @ a, device, 10)


def flops(backbone: Backbone, side: int) -> int:
    """Return the FLOPs of one image through the network, counted by torch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device))
    return int(counter.get_total_flops())


def measure(
    name: str, device: torch.device, top: float, batch: int, side: int, repeats: int, compiled: bool
) -> dict[str, Any]:
    """Return images/s and utilization of extraction, which is never compiled, and of fine-tuning."""
    backbone = network(name).to(device).to(memory_format=torch.channels_last)
    each = flops(backbone, side)
    pixels = torch.randn(batch, 3, side, side)
    pixels = pixels.pin_memory() if device.type == "cuda" else pixels
    y = torch.randint(CLASSES, (batch,), device=device)
    head, inference = LinearHead(backbone.width, CLASSES, init="zeros"), InferenceBackend("torch", PRECISION)
    net = Model(backbone, head, PRECISION, inference, compile_backbone=compiled).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def extract() -> None:
        with torch.inference_mode():
            encode(backbone, pixels.to(device, non_blocking=True), PRECISION, device)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(net(pixels.to(device, non_blocking=True)).logits, y).mean().backward()
        optimizer.step()

    backbone.eval()
    extraction = batch / seconds(extract, device, repeats)
    net.train()
    train = batch / seconds(step, device, repeats)
    return {
        f"gpu.{name}.extract.images_per_second": round(extraction, 1),
        f"gpu.{name}.extract.mfu": round(extraction * each / top, 3),
        f"gpu.{name}.tune.images_per_second": round(train, 1), f"gpu.{name}.tune.mfu": round(3 * train * each / top, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--cpu", action="store_true", help="try the script out without a GPU, on small inputs")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; --cpu tries the script out without one")
    device = torch.device("cpu" if args.cpu else "cuda")
    side, batch, repeats = (SIDE, 2, 1) if args.cpu else (SIDE, args.batch, 20)
    found: dict[str, Any] = {"gpu.device": "cpu" if args.cpu else torch.cuda.get_device_name()}
    top = ceiling(device, 512 if args.cpu else 8192)
    found["gpu.matmul.tflops"] = round(top / 1e12, 2)
    for name in ("vit_b16", "convnext_t"):
        found |= measure(name, device, top, batch, side, repeats, compiled=not args.cpu)
        print(json.dumps(found, indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
