"""The processes that share one training: each does its part of every look and step, and all end with the same numbers.

A method knows nothing of ranks. The backbone is what costs, so the backbone is what is divided: in a look each rank
passes some of the batches through it, in a step each rank passes its share of the rows of the batch. Features (or
scores) of all rows are then gathered on every rank, so that heads, losses, mixtures and selections see the whole batch
and the whole split, whatever a loss does with it. With one process everything here is the identity.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from cleantune.errors import UserError
from cleantune.methods.protocol import Inputs

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a rank waits for others while one of them works alone; a rank that died is noticed at once."""


@dataclass(frozen=True)
class ProcessGroup:
    """Where this process stands among those that share the training."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Number of this process among those on this machine."""
    group: Any = None
    """Of torch.distributed, for tensors on the CPU; tensors on a GPU go through the default group."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            torch.distributed.barrier(group=self.group)

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank; it is called nowhere else.

        Args:
            make: Gives what JSON can hold.

        Raises:
            UserError: The one that rank 0 raised, on every rank.
        """
        if self.count == 1:
            return make()
        said: dict[str, Any] = {}
        if self.main:
            try:
                said = {"value": make()}
            except UserError as error:
                said = {"error": str(error)}
        said = self._from(0, said)
        if "error" in said:
            raise UserError(said["error"])
        value: T = said["value"]
        return value

    def each(self, value: Any) -> list[Any]:
        """What every rank gives, which JSON can hold, in the order of the ranks."""
        return [self._from(rank, value) for rank in range(self.count)] if self.count > 1 else [value]

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """One process of every machine goes first; the others find what it left in the cache."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()
        self.wait()

    def is_identical(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these tensors are the same on every rank, bit for bit."""
        if self.count == 1:
            return True
        digest = blake2b(digest_size=16)
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return len(set(self.each(digest.hexdigest()))) == 1

    # -- looks -------------------------------------------------------------------------------------------------------

    def mine(self, items: Sequence[T]) -> list[T]:
        """The items of this rank: every count-th. A rank that would have none takes the first, and says nothing of it.

        As many on every rank as on rank 0, since a sharded backbone needs all ranks in each forward.
        """
        own = list(items[self.rank :: self.count])
        return own + list(items[: -(-len(items) // self.count) - len(own)])

    def all_gather(self, own: Shaped[Tensor, "n ..."], sizes: Sequence[int]) -> Shaped[Tensor, "N ..."]:
        """The rows of all ranks, in the order of the ranks; of what is given beyond a rank's size nothing is taken."""
        if self.count == 1:
            return own
        sent = own.new_zeros((max(sizes), *own.shape[1:]))
        sent[: sizes[self.rank]] = own[: sizes[self.rank]]
        parts = [torch.empty_like(sent) for _ in sizes]
        torch.distributed.all_gather(parts, sent, group=None if own.is_cuda else self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    # -- steps -------------------------------------------------------------------------------------------------------

    def part(self, x: Inputs) -> Inputs:
        """This rank's share of the rows of a batch; the first row alone where there are fewer rows than ranks."""
        if self.count == 1:
            return x
        if not isinstance(x, Tensor):
            return {name: self.part(value) for name, value in x.items()}  # type: ignore[misc]
        sizes = self.sizes(len(x))
        start = sum(sizes[: self.rank])
        return x[start : start + sizes[self.rank]] if sizes[self.rank] else x[:1]

    def join(self, own: Shaped[Tensor, "n ..."], count: int) -> Shaped[Tensor, "N ..."]:
        """The rows of a batch of so many from the shares of all ranks; gradients flow into this rank's share.

        Every rank has the whole loss, so what comes back is the gradient of its share already: nothing is summed.
        """
        if self.count == 1:
            return own
        joined: Tensor = _Joined.apply(own, self, self.sizes(count))  # type: ignore[no-untyped-call]
        return joined

    def sizes(self, count: int) -> list[int]:
        """Rows of each rank's share."""
        return [count // self.count + (rank < count % self.count) for rank in range(self.count)]

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The sum over ranks in the place of every gradient, as one message.

        One message after the backward pass, where DistributedDataParallel sends buckets beside it: its buckets are
        made anew after the first step of a phase, which changes the last bits of a run that was resumed.
        """
        if self.count == 1:
            return
        learning = [p for p in parameters if p.grad is not None and not is_sharded(p)]
        if not learning:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in learning])  # type: ignore[union-attr]
        for p, gradient in zip(learning, torch.split(self.total(flat), [p.numel() for p in learning]), strict=True):
            p.grad.copy_(gradient.view_as(p))  # type: ignore[union-attr]

    def total(self, own: Tensor) -> Tensor:
        """The sum over ranks."""
        out = own.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(out, group=None if own.is_cuda else self.group)
        return out

    def _from(self, rank: int, value: Any) -> Any:
        """What a rank gives, as JSON."""
        data = json.dumps(value).encode() if rank == self.rank else b""
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, rank, group=self.group)
        sent = torch.frombuffer(bytearray(data or bytes(int(size))), dtype=torch.uint8)
        torch.distributed.broadcast(sent, rank, group=self.group)
        return json.loads(bytes(sent.numpy()))


SINGLE_PROCESS = ProcessGroup()
"""One process: the usual case."""


def init_distributed() -> ProcessGroup:
    """The ranks that a launcher (torchrun, Ray Train, MPI, Slurm) has started this process among, joined by accelerate.

    Raises:
        UserError: There are several and accelerate is not installed.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not (started or (torch.distributed.is_available() and torch.distributed.is_initialized())):
        return SINGLE_PROCESS
    try:
        from accelerate import PartialState
    except ImportError:
        raise UserError("several ranks need accelerate: pip install 'cleantune[ray]'") from None
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    joined_before = torch.distributed.is_initialized()
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes == 1:
        return SINGLE_PROCESS
    if state.num_processes not in _groups:
        _groups[state.num_processes] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    if not joined_before:
        atexit.register(shutdown)
    return ProcessGroup(
        state.process_index, state.num_processes, state.local_process_index, _groups[state.num_processes]
    )


_groups: dict[int, Any] = {}
"""The group for tensors on the CPU, made once a process, whatever serves tensors on a GPU."""


def shutdown() -> None:
    """Part from the other ranks, before the interpreter ends: whoever joined them has to.

    Gloo's threads may still hold what was sent last. Left to themselves they let go of it while Python is being taken
    down, and the process ends by SIGABRT, "terminate called without an active exception" (pytorch/pytorch#190489).
    """
    _groups.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of the tensor alone (FSDP); its gradients are summed already."""
    return hasattr(tensor, "placements")


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization by the mean and variance over the rows of all ranks; torch's own works on GPUs alone."""

    ranks: ProcessGroup

    @classmethod
    def become(cls, module: nn.Module, ranks: ProcessGroup) -> None:
        """Make every batch normalization inside share its statistics; parameters and buffers stay the same objects."""
        for each in module.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm) and ranks.count > 1:
                each.__class__ = cls
                each.ranks = ranks  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Any number of dimensions, channels second."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalized by the batch of all ranks while learning, by the running statistics otherwise."""
        if not (self.training and self.track_running_stats):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        own = input.new_full((1,), input.numel() / input.shape[1])
        count = _Summed.apply(own, self.ranks)  # type: ignore[no-untyped-call]
        mean = _Summed.apply(input.sum(axes), self.ranks) / count  # type: ignore[no-untyped-call]
        centered = input - mean.view(shape)
        variance = _Summed.apply(centered.square().sum(axes), self.ranks) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, part)
            self.running_var.lerp_(variance * count / (count - 1), part)
        normed: Tensor = centered * (variance.view(shape) + self.eps).rsqrt()
        return normed if self.weight is None else normed * self.weight.view(shape) + self.bias.view(shape)


class _Summed(torch.autograd.Function):
    """The sum over ranks; what each rank's outputs owe to the sum is summed on the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: ProcessGroup) -> Tensor:
        ctx.ranks = ranks
        return ranks.total(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.total(gradient), None


class _Joined(torch.autograd.Function):
    """Rows of all ranks from this rank's rows; the gradient of this rank's rows from that of all."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: ProcessGroup, sizes: list[int]) -> Tensor:
        ctx.start, ctx.size, ctx.rows = sum(sizes[: ranks.rank]), sizes[ranks.rank], len(own)
        return ranks.all_gather(own, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        own = gradient.new_zeros((ctx.rows, *gradient.shape[1:]))
        own[: ctx.size] = gradient[ctx.start : ctx.start + ctx.size]
        return own, None, None
