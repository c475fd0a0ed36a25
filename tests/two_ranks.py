"""One of several processes: every method alone and shared with the others; what differs is written as JSON."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from test_contract import CLASSES, InMemory, Vectors, backbone, blobs, loop_for, new_head, quick
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, SharedBatchNorm, init_distributed
from cleantune.features import extract, shards
from cleantune.features.backend import InferenceBackend
from cleantune.methods import METHODS
from cleantune.methods.protocol import Method, Scope, Stage
from cleantune.training.batches import FeatureBatches, SampleBatches
from cleantune.training.checkpoint import SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.models import Net
from cleantune.training.trainer import Trainer

SIZE = 97
"""Samples: the batches cannot be divided evenly."""


class Shared(InMemory):
    """A memory into which rank 0 alone writes, and from which all ranks read, as from a folder that all see."""

    def __init__(self, ranks: ProcessGroup) -> None:
        super().__init__()
        self.ranks = ranks

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        found = super().load()
        said = [(k, str(v.dtype), v.tolist()) for k, v in found[0].items()] if found else None
        tensors, counters = self.ranks.first(lambda: [said, found[1] if found else None])
        if tensors is None:
            return None
        return {k: torch.tensor(v, dtype=getattr(torch, d.split(".")[1])) for k, d, v in tensors}, counters


def trained(
    method: Method, scope: Scope, ranks: ProcessGroup, memory: InMemory | None = None
) -> tuple[Trainer, list[Any]]:
    """A run of so many ranks, and its rows."""
    problem = blobs(0.3, size=SIZE)
    loop = loop_for(method, problem, scope, body=backbone(dropout=0.0))
    loop.ranks = ranks
    rows = list(train(phases(method, 3e-3), loop, Evaluator(problem.data()), memory))
    return loop, rows


def numbers(loop: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run has learned and remembers, and the last plan."""
    tensors, _ = loop.state()
    assert loop.plan is not None
    return {k: v.float() for k, v in tensors.items() if k != "rng"} | {"plan": loop.selection.mask.float()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number, in units of the largest of its tensor."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-3)) for k in a if a[k].numel())


def short(name: str, scope: Scope, **stage: Any) -> Method:
    """A method for a few epochs."""
    method = quick(name, scope)
    split_batches = {
        k: replace(getattr(method, k), epochs=min(3, getattr(method, k).epochs), **stage) for k in ("probe", "tune")
    }
    return replace(method, **split_batches)  # type: ignore[type-var]


def compared(name: str, scope: Scope, ranks: ProcessGroup, **stage: Any) -> dict[str, Any]:
    """One method alone, shared, and shared again."""
    method = short(name, scope, **stage)
    (alone, rows), (shared, same), (again, _) = (trained(method, scope, r) for r in (SINGLE_PROCESS, ranks, ranks))
    a, b, c = numbers(alone), numbers(shared), numbers(again)
    return {
        "difference": difference(a, b),
        "plan": float((a["plan"] != b["plan"]).float().sum()),
        "again": all(torch.equal(b[k], c[k]) for k in b),
        "alike": ranks.is_identical(b.values()),
        "forward_passes": [row["forward_passes"] for row in rows] == [row["forward_passes"] for row in same],
        "evaluation": alone.cost.evaluation_forward_passes == shared.cost.evaluation_forward_passes,
    }


def resumed(ranks: ProcessGroup) -> bool:
    """Whether a run that goes on from its second epoch ends with the bits of one left alone."""
    method, memory = short("elr", "all"), Shared(ranks)
    whole, _ = trained(method, "all", ranks, memory)
    memory.saved = memory.saved[:2]
    torn, rows = trained(method, "all", ranks, memory)
    return len(rows) == 1 and all(torch.equal(numbers(whole)[k], v) for k, v in numbers(torn).items())


def batch_normed(ranks: ProcessGroup) -> dict[str, float]:
    """Outputs, gradients and running statistics of a shared normalization against one over the whole batch."""
    out: dict[str, float] = {}
    for shape in ((7, 3), (7, 3, 4, 5)):
        torch.manual_seed(1)
        x, goal = torch.randn(shape) * 3 + 1, torch.randn(shape)
        make: Callable[[int], nn.Module] = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        whole, shared = make(3), make(3)
        SharedBatchNorm.become(shared, ranks)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        (whole(a) * goal).sum().backward()
        joined = ranks.join(shared(ranks.part(b)), len(b))
        (joined * goal).sum().backward()
        ranks.all_reduce_gradients(shared.parameters())
        assert b.grad is not None
        assert a.grad is not None
        close = [(whole(x), ranks.join(shared(ranks.part(x)), len(x))), (a.grad, ranks.total(b.grad))]
        close += [(p.grad, q.grad) for p, q in zip(whole.parameters(), shared.parameters(), strict=True)]
        close += list(zip(whole.buffers(), shared.buffers(), strict=True))
        out[str(shape)] = max(float((p.float() - q.float()).abs().max()) for p, q in close)  # type: ignore[union-attr]
    return out


def extracted(ranks: ProcessGroup, cache: Path) -> dict[str, Any]:
    """Features in shards made by all ranks, against those made by one."""
    shards.SHARD_ROWS, extract.BATCH_SIZE, extract.MAX_BATCH_SIZE = 16, 4, 4
    backend = InferenceBackend()
    body = open_backbone(nn.Linear(8, 6), feature="x", width=6)
    for p in body.parameters():
        nn.init.constant_(p, 0.1)
    data = blobs(0.0, size=50)
    prepared = data.data().rows["train"].samples
    alone = extract.extract(body, prepared, backend, cache / f"own-{ranks.rank}", "k")  # type: ignore[arg-type]
    made: list[int] = []
    real = extract.extract_shard
    extract.extract_shard = lambda *a: made.append(1) or real(*a)  # type: ignore[func-returns-value,assignment]
    shared = extract.extract(body, prepared, backend, cache / "shared", "k", group=ranks)  # type: ignore[arg-type]
    return {"equal": bool(np.array_equal(alone, shared)), "made": ranks.each(len(made))}


def empty_share(ranks: ProcessGroup) -> bool:
    """Whether a batch of one row passes through a net of two ranks as through one."""
    loop, _ = trained(short("ce", "all"), "all", SINGLE_PROCESS)
    net: Net = loop.whole[0].eval()
    x = torch.randn(1, 8)
    alone = net(x).logits
    net.sharing = ranks
    return torch.allclose(net(x).logits, alone, atol=1e-6)


class Pictures(Vectors):
    """Pictures whose weak views are the pictures."""

    def weak_view(self, indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.x[indices]


def divided(ranks: ProcessGroup, folder: Path) -> dict[str, Any]:
    """A small ViT fine-tuned whole, divided among the ranks, and divided and resumed after its first epoch."""
    if ranks.main:
        save_tiny("vit", folder / "vit")
    ranks.wait()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, 32, 32, generator=rng), torch.arange(40) % CLASSES
    method = replace(short("ce", "all"), tune=Stage(epochs=3, learning_rate=1e-2, batch_size=16))  # type: ignore[type-var]

    def run(shared: ProcessGroup, sharded: bool, memory: InMemory | None = None) -> Trainer:
        body = open_backbone(folder / "vit")
        with torch.no_grad():
            features = FeatureBatches(body.eval()(x))
        split = SplitData(y, features, SampleBatches(Pictures(x)))
        net = Net(body, new_head(cache.plain, 0))
        loop = Trainer([net], {"train": split}, CLASSES, 0, new_head, ranks=shared, sharded=sharded)
        list(train(phases(method, 1e-3), loop, lambda run, looks: {}, memory))
        return loop

    memory = Shared(ranks)
    alone, mine = run(SINGLE_PROCESS, False), run(ranks, True, memory)
    memory.saved = memory.saved[:1]
    torn = run(ranks, True, memory)
    a, b, c = numbers(alone), numbers(mine), numbers(torn)
    body = mine.whole[0].backbone
    assert body is not None
    held = sum(p.to_local().numel() for p in body.parameters())  # type: ignore[attr-defined]
    whole = sum(p.numel() for p in body.parameters())
    mine.gather_models(lambda: [Net(open_backbone(folder / "vit"), new_head(torch.zeros(2, 16), 0))])
    gathered = mine.whole[0].backbone
    assert gathered is not None
    same = all(torch.equal(v, b[f"backbone.0.{k}"]) for k, v in gathered.state_dict().items())
    return {
        "difference": difference(a, b), "held": held / whole, "resumed": all(torch.equal(b[k], c[k]) for k in b),
        "gathered": same,
    }  # fmt: skip


def end(out: Path) -> None:
    """Whether this rank has left the others; asked first, so called after what was asked for later."""
    (out / f"left-{os.environ['RANK']}.json").write_text(json.dumps(not torch.distributed.is_initialized()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    atexit.register(end, Path(sys.argv[1]))
    ranks, out = init_distributed(), Path(sys.argv[1])
    table = [(name, scope) for name in METHODS for scope in get_args(Scope)]
    said: dict[str, Any] = {f"{name} {scope}": compared(name, scope, ranks) for name, scope in table}
    said["ce all, BatchNorm learns"] = compared("ce", "all", ranks, freeze_batchnorm=False)
    said["resumed"], said["batch norm"] = resumed(ranks), batch_normed(ranks)
    said["extracted"], said["empty share"] = extracted(ranks, out), empty_share(ranks)
    said["divided"] = divided(ranks, out)
    said["count"] = ranks.count
    if ranks.main:
        (out / "said.json").write_text(json.dumps(said))
    ranks.wait()
