"""One of several processes: train every method alone and with the others, and write the differences as JSON."""

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
from cleantune.distributed.batch_norm import convert_sync_batchnorm
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, init_distributed
from cleantune.features import extract, shards
from cleantune.features.backend import InferenceBackend
from cleantune.methods import METHODS
from cleantune.methods.protocol import Method, Scope, Stage
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.checkpoint import Checkpoint
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

SIZE = 97
"""Samples: the batches cannot be divided evenly."""


class SharedStore(InMemory):
    """A store into which the main process writes, and from which all processes read."""

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        return self.group.on_main(super().load)


def trained(
    method: Method, scope: Scope, group: ProcessGroup, store: InMemory | None = None
) -> tuple[Trainer, list[Any]]:
    """Return a run of a group after training, and its metrics."""
    problem = blobs(0.3, size=SIZE)
    trainer = loop_for(method, problem, scope, body=backbone(dropout=0.0), process_group=group)
    rows = list(train(phases(method, 3e-3), trainer, Evaluator(problem.data()), store))
    return trainer, rows


def numbers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return all tensors of a run, and its last selection."""
    tensors = Checkpoint.capture(trainer).tensors
    assert trainer.selection is not None
    return {k: v.float() for k, v in tensors.items() if k != "rng"} | {"selection": trainer.selection.mask.float()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any number, relative to the largest of its tensor."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-3)) for k in a if a[k].numel())


def short(name: str, scope: Scope, **stage: Any) -> Method:
    """A method for a few epochs."""
    method = quick(name, scope)
    split_batches = {
        k: replace(getattr(method, k), epochs=min(3, getattr(method, k).epochs), **stage) for k in ("probe", "tune")
    }
    return replace(method, **split_batches)  # type: ignore[type-var]


def compared(name: str, scope: Scope, group: ProcessGroup, **stage: Any) -> dict[str, Any]:
    """Compare one method alone, shared, and shared again."""
    method = short(name, scope, **stage)
    (alone, rows), (shared, same), (again, _) = (trained(method, scope, g) for g in (SINGLE_PROCESS, group, group))
    a, b, c = numbers(alone), numbers(shared), numbers(again)
    return {
        "difference": difference(a, b),
        "selection": float((a["selection"] != b["selection"]).float().sum()),
        "again": all(torch.equal(b[k], c[k]) for k in b),
        "identical": group.is_identical(b.values()),
        "forward_passes": [row["forward_passes"] for row in rows] == [row["forward_passes"] for row in same],
        "evaluation": alone.cost.evaluation_forward_passes == shared.cost.evaluation_forward_passes,
    }


def resumed(group: ProcessGroup) -> bool:
    """Return True if a run resumed after its second epoch equals an uninterrupted one."""
    method, store = short("elr", "all"), SharedStore(group)
    expected, _ = trained(method, "all", group, store)
    store.saved = store.saved[:2]
    trainer, rows = trained(method, "all", group, store)
    return len(rows) == 1 and all(torch.equal(numbers(expected)[k], v) for k, v in numbers(trainer).items())


def batch_norm_errors(group: ProcessGroup) -> dict[str, float]:
    """Compare outputs, gradients and running statistics of a converted BatchNorm with one of the whole batch."""
    out: dict[str, float] = {}
    for shape in ((7, 3), (7, 3, 4, 5)):
        torch.manual_seed(1)
        x, goal = torch.randn(shape) * 3 + 1, torch.randn(shape)
        make: Callable[[int], nn.Module] = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        whole, shared = make(3), convert_sync_batchnorm(nn.Sequential(make(3)), group)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        (whole(a) * goal).sum().backward()
        (group.gather_shards(shared(group.shard(b)), len(b)) * goal).sum().backward()
        group.all_reduce_gradients(shared.parameters())
        assert b.grad is not None
        assert a.grad is not None
        pairs = [(whole(x), group.gather_shards(shared(group.shard(x)), len(x))), (a.grad, group.all_reduce(b.grad))]
        pairs += [(p.grad, q.grad) for p, q in zip(whole.parameters(), shared.parameters(), strict=True)]
        pairs += list(zip(whole.buffers(), shared.buffers(), strict=True))
        out[str(shape)] = max(float((p.float() - q.float()).abs().max()) for p, q in pairs)  # type: ignore[union-attr]
    return out


def extracted(group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Compare features in shards that all processes extract with those of one process."""
    shards.SHARD_ROWS, extract.BATCH_SIZE, extract.MAX_BATCH_SIZE = 16, 4, 4
    body = open_backbone(nn.Linear(8, 6), feature="x", width=6)
    for p in body.parameters():
        nn.init.constant_(p, 0.1)
    inputs = blobs(0.0, size=50).data().rows["train"].samples
    alone = extract.extract(body, inputs, InferenceBackend(), folder / f"alone-{group.rank}", "k")  # type: ignore[arg-type]
    made: list[int] = []
    real = extract.extract_shard
    extract.extract_shard = lambda *a: made.append(1) or real(*a)  # type: ignore[func-returns-value,assignment]
    shared = extract.extract(body, inputs, InferenceBackend(), folder / "shared", "k", group=group)  # type: ignore[arg-type]
    return {"equal": bool(np.array_equal(alone, shared)), "shards": group.all_gather_object(len(made))}


def single_row(group: ProcessGroup) -> bool:
    """Return True if a batch of one row passes through two processes as through one."""
    trainer, _ = trained(short("ce", "all"), "all", SINGLE_PROCESS)
    model: Model = trainer.models[0].eval()
    x = torch.randn(1, 8)
    alone = model(x).logits
    with model.sharded_batches(group):
        return torch.allclose(model(x).logits, alone, atol=1e-6)


class Images(Vectors):
    """Images whose weak views are the images."""

    def weak_view(self, indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.x[indices]


def fully_sharded(group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Fine-tune a small ViT whole, divided among the processes, and divided and resumed after its first epoch."""
    if group.is_main:
        save_tiny("vit", folder / "vit")
    group.barrier()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, 32, 32, generator=rng), torch.arange(40) % CLASSES
    method = replace(short("ce", "all"), tune=Stage(epochs=3, learning_rate=1e-2, batch_size=16))  # type: ignore[type-var]

    def run(shared: ProcessGroup, is_sharded: bool, store: InMemory | None = None) -> Trainer:
        body = open_backbone(folder / "vit")
        with torch.no_grad():
            features = FeatureBatches(body.eval()(x))
        split = SplitData(y, features, SampleBatches(Images(x)))  # type: ignore[arg-type]
        models = [Model(body, new_head(features.plain, 0))]
        trainer = Trainer(models, {"train": split}, CLASSES, 0, new_head, process_group=shared, is_sharded=is_sharded)
        list(train(phases(method, 1e-3), trainer, lambda trainer: {}, store))
        return trainer

    store = SharedStore(group)
    alone, shared = run(SINGLE_PROCESS, False), run(group, True, store)
    store.saved = store.saved[:1]
    again = run(group, True, store)
    a, b, c = numbers(alone), numbers(shared), numbers(again)
    body = shared.models[0].backbone
    assert body is not None
    local = sum(p.to_local().numel() for p in body.parameters())  # type: ignore[attr-defined]
    total = sum(p.numel() for p in body.parameters())
    shared.state.gather(lambda: [Model(open_backbone(folder / "vit"), new_head(torch.zeros(2, 16), 0))])
    gathered = shared.models[0].backbone
    assert gathered is not None
    return {
        "difference": difference(a, b),
        "local_fraction": local / total,
        "resumed": all(torch.equal(b[k], c[k]) for k in b),
        "gathered": all(torch.equal(v, b[f"backbone.0.{k}"]) for k, v in gathered.state_dict().items()),
    }


def note_shutdown(out: Path) -> None:
    """Write whether the process group is destroyed; registered first, so called last."""
    (out / f"shutdown-{os.environ['RANK']}.json").write_text(json.dumps(not torch.distributed.is_initialized()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    atexit.register(note_shutdown, Path(sys.argv[1]))
    group, out = init_distributed(), Path(sys.argv[1])
    table = [(name, scope) for name in METHODS for scope in get_args(Scope)]
    report: dict[str, Any] = {f"{name} {scope}": compared(name, scope, group) for name, scope in table}
    report["ce all, BatchNorm learns"] = compared("ce", "all", group, freeze_batchnorm=False)
    report["resumed"], report["batch norm"] = resumed(group), batch_norm_errors(group)
    report["extracted"], report["single row"] = extracted(group, out), single_row(group)
    report["fsdp"] = fully_sharded(group, out)
    report["world_size"] = group.world_size
    if group.is_main:
        (out / "report.json").write_text(json.dumps(report))
    group.barrier()
