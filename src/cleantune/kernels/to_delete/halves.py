"""A batch that learns, passed through the backbone as two halves in two threads: the bits of two ranks, in one process.

Processors add up the gradient of a weight in an order that depends on the number of rows and of threads. Two ranks of
one thread each, and one process of two, therefore differ in the last digits, and fine-tuning makes much of little. With
halves they do not differ: `fit` and `fit --workers 2` on two cores give the same list.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cleantune.distributed.process_group import ProcessGroup
from cleantune.methods.protocol import Inputs

T = TypeVar("T")
HALVES = (ProcessGroup(0, 2), ProcessGroup(1, 2))
"""What two ranks would take of a batch."""
PATIENCE = 5e-5
"""Seconds that a half waits before it insists on Python's lock, which the other gives back at each operation and takes
again before this one has woken up. By itself Python waits for 0.005, a sixth of a step."""
_thread = threading.local()


def at_rest(backbone: nn.Module) -> bool:
    """Whether two threads may pass rows through the backbone at once, each for itself, and come to what one would.

    Dropout of any kind draws from one generator, which two threads would ask in no fixed order; batch normalization
    with statistics of its own mixes the rows.
    """
    return not any(_restless(module) for module in backbone.modules())


def _restless(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if "drop" in type(module).__name__.lower() and getattr(module, "p", getattr(module, "drop_prob", None)) != 0:
        return True
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items())


class Learning:
    """A backbone and its weights that learn.

    Attributes:
        backbone: The network.
        weights: All that learns.
    """

    def __init__(self, backbone: nn.Module) -> None:
        """A backbone on the CPU; nothing in it draws luck or mixes rows (`at_rest`)."""
        self.backbone = backbone
        self.weights = [p for p in backbone.parameters() if p.requires_grad]


def halved(learning: Learning, x: Inputs, within: Callable[[], Any]) -> Tensor:
    """The backbone's features of a batch, as float32; gradients flow into its weights. Within `half_of_the_threads`.

    Args:
        learning: The backbone.
        x: The batch, of two rows at the least.
        within: Makes the context (autocast) in which it computes; contexts belong to a thread.
    """
    joined: Tensor = _Halved.apply(torch.zeros(1, requires_grad=True), learning, x, within)  # type: ignore[no-untyped-call]
    return joined


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Torch computes with half of its threads here, as a rank of two does: heads and losses too come to its bits."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(max(1, threads // 2))
    sys.setswitchinterval(min(interval, PATIENCE))
    _thread.halves = True
    try:
        yield
    finally:
        _thread.halves = False
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)


def by_halves(make: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """What a function makes of rows that have nothing to do with one another.

    Of both halves at once within `half_of_the_threads`, in the thread that is; elsewhere of all.

    Args:
        make: From some rows of each tensor to as many of its own.
        rows: Tensors of as many rows.
    """
    if not getattr(_thread, "halves", False) or len(rows[0]) < 2:
        return make(*rows)
    return torch.cat(_both(lambda share: make(*map(share.part, rows)), HALVES))


def _both(work: Callable[..., T], *pairs: Sequence[Any]) -> list[T]:
    """What comes of the first of each pair, in this thread, and of the second, in one beside, at once."""
    first, second = zip(*pairs, strict=True)
    beside = _thread_beside(torch.get_num_threads()).submit(work, *second)
    try:
        return [work(*first), beside.result()]
    finally:
        wait([beside])


@cache
def _thread_beside(threads: int) -> ThreadPoolExecutor:
    """A thread that computes with so many of torch's own."""
    pool = ThreadPoolExecutor(1, "half", torch.set_num_threads, (threads,))
    # It takes its number when it first asks, and a number that is set is that of all threads of the future.
    pool.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)
    return pool


class _Halved(torch.autograd.Function):
    """Both halves at once; their gradients are summed in a fixed order."""

    @staticmethod
    def forward(ctx: Any, hook: Tensor, learning: Learning, x: Inputs, within: Callable[[], Any]) -> Tensor:
        def half(share: ProcessGroup) -> Tensor:
            with torch.enable_grad(), within():
                f: Tensor = learning.backbone(share.part(x))
                return f.float()

        ctx.learning, ctx.halves = learning, _both(half, HALVES)
        return torch.cat([f.detach() for f in ctx.halves])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.learning.weights

        def half(f: Tensor, own: Tensor) -> list[Tensor | None]:
            return list(torch.autograd.grad(f, weights, own, allow_unused=True))

        parts = torch.split(gradient, [len(f) for f in ctx.halves])
        for p, one, other in zip(weights, *_both(half, ctx.halves, parts), strict=True):
            if one is None or other is None:
                continue
            total = one.add_(other)
            if p.grad is not None:
                p.grad.add_(total)
            else:  # laid out in memory as the weight is, which fused optimizers want
                p.grad = total if total.stride() == p.stride() else torch.empty_like(p).copy_(total)
        return torch.zeros(1), None, None, None
