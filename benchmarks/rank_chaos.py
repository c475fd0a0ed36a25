"""Measure how fast two trainings diverge that differ only in the order of a sum: the gradient of a batch, and the sum
of the gradients of its two parts, as two processes would compute it. Both run in one process.

    python benchmarks/rank_chaos.py MODEL
"""

from __future__ import annotations

import copy
import sys

import torch

from cleantune.backbones import Backbone, open_backbone
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model

STEPS, BATCH, CLASSES = 24, 64, 10
DEFAULT_MODEL = "../shared/models/mobilenet_v2_0.35"


def trained(backbone: Backbone, x: torch.Tensor, y: torch.Tensor, parts: int) -> tuple[list[float], torch.Tensor]:
    """Return the loss of each step, and the gradient of the second one."""
    net = Model(copy.deepcopy(backbone), LinearHead(backbone.width, CLASSES, init="zeros")).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, fused=True)
    losses, gradient = [], torch.zeros(())
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for rows in torch.arange(step * BATCH, (step + 1) * BATCH).chunk(parts):
            loss = torch.nn.functional.cross_entropy(net(x[rows]).logits, y[rows], reduction="sum") / BATCH
            loss.backward()
            total += float(loss.detach())
        if step == 1:
            gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).clone()
        optimizer.step()
        losses.append(total)
    return losses, gradient


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = open_backbone(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, image_size=48).eval()
    x, y = torch.randn(STEPS * BATCH, 3, 48, 48), torch.randint(CLASSES, (STEPS * BATCH,))
    (full, a), (parts, b) = trained(backbone, x, y, 1), trained(backbone, x, y, 2)
    print("gradient of step 2, relative difference:", float((a - b).norm() / a.norm()))
    for step in range(0, STEPS, 4):
        print(step + 1, full[step], parts[step], abs(full[step] - parts[step]) / full[step])
