"""Data parallelism: the processes that share one run, and the collectives they need.

A method sees no processes. Only the backbone is divided: in an evaluation pass each process takes some of the batches,
in a training step its share of the rows of the batch. The features or scores of all rows are then gathered, so heads,
losses, mixtures and selections see the whole batch and the whole split in every process. With one process every
function here is the identity.
"""

from __future__ import annotations

import atexit
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
TIMEOUT = timedelta(days=1)
"""Time for which processes wait for one that works alone; the death of a process is noticed at once."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a run, as one of them sees it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number of this process on its machine."""
    cpu_group: Any = None
    """Gloo group of torch.distributed for tensors on the CPU; tensors on a GPU use the default group."""

    @property
    def is_main(self) -> bool:
        """Return True in the process that writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier(group=self.cpu_group)

    # -- Python objects ----------------------------------------------------------------------------------------------

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process, and return its result in every process.

        Raises:
            UserError: The function raised it; every process raises the same.
        """
        if self.world_size == 1:
            return function()
        result: list[Any] = [None]
        if self.is_main:
            try:
                result = [function()]
            except UserError as error:
                result = [error]
        torch.distributed.broadcast_object_list(result, src=0, group=self.cpu_group)
        if isinstance(result[0], UserError):
            raise result[0]
        value: T = result[0]
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value, group=self.cpu_group)
        return values

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Let one process of every machine go first, so that the others find its results in the cache."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()
        self.barrier()

    def is_identical(self, tensors: Iterable[Tensor]) -> bool:
        """Return True if these tensors are bitwise identical in all processes."""
        if self.world_size == 1:
            return True
        digest = blake2b(digest_size=16)
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return len(set(self.all_gather_object(digest.hexdigest()))) == 1

    # -- evaluation passes -------------------------------------------------------------------------------------------

    def shard_batches(self, batches: Sequence[T]) -> list[T]:
        """Return every `world_size`-th batch, beginning with this rank's.

        Every process returns as many as the main one, since a sharded backbone needs all processes in each forward
        pass. A process without enough batches repeats the first ones; `all_gather` drops their results.
        """
        own = list(batches[self.rank :: self.world_size])
        return own + list(batches[: -(-len(batches) // self.world_size) - len(own)])

    def all_gather(self, rows: Shaped[Tensor, "n ..."], sizes: Sequence[int]) -> Shaped[Tensor, "N ..."]:
        """Concatenate the first `sizes[rank]` rows of every process, by rank."""
        if self.world_size == 1:
            return rows
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: sizes[self.rank]] = rows[: sizes[self.rank]]
        gathered = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(gathered, padded, group=self._group_of(rows))
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    # -- training steps ----------------------------------------------------------------------------------------------

    def shard_sizes(self, num_rows: int) -> list[int]:
        """Return the number of rows in the share of each process."""
        return [num_rows // self.world_size + (rank < num_rows % self.world_size) for rank in range(self.world_size)]

    def shard(self, x: Inputs) -> Inputs:
        """Return this process's share of the rows of a batch; the first row if its share is empty."""
        if self.world_size == 1:
            return x
        if not isinstance(x, Tensor):
            return {name: self.shard(value) for name, value in x.items()}  # type: ignore[misc]
        sizes = self.shard_sizes(len(x))
        start = sum(sizes[: self.rank])
        return x[start : start + sizes[self.rank]] if sizes[self.rank] else x[:1]

    def gather_shards(self, rows: Shaped[Tensor, "n ..."], num_rows: int) -> Shaped[Tensor, "N ..."]:
        """Concatenate the shares of a batch of `num_rows` rows; gradients flow into the share of this process.

        Every process computes the loss of the whole batch, so the gradient that flows back is already that of its
        share: `torch.distributed.nn.functional.all_gather` would sum it over the processes.
        """
        if self.world_size == 1:
            return rows
        sizes = self.shard_sizes(num_rows)
        start = sum(sizes[: self.rank])
        end = start + sizes[self.rank]
        gathered = self.all_gather(rows.detach(), sizes)
        return torch.cat([gathered[:start], rows[: end - start], gathered[end:]])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=self._group_of(tensor))
        return total

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every gradient over the processes, as one message.

        DistributedDataParallel overlaps its messages with the backward pass, but rebuilds its buckets after the first
        step: a resumed run would differ in the last bits.
        """
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
        if not gradients:
            return
        total = self.all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(total, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _group_of(self, tensor: Tensor) -> Any:
        return None if tensor.is_cuda else self.cpu_group


SINGLE_PROCESS = ProcessGroup()
"""The usual case."""
_cpu_groups: list[Any] = []
"""The gloo group of this process, created once."""


def init_distributed() -> ProcessGroup:
    """Join the processes that a launcher (torchrun, Ray Train) started, by its environment variables.

    Returns:
        The process group, `SINGLE_PROCESS` where there is one process.
    """
    distributed = torch.distributed
    if not distributed.is_available():
        return SINGLE_PROCESS
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return SINGLE_PROCESS
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        atexit.register(shutdown)
    if distributed.get_world_size() == 1:
        return SINGLE_PROCESS
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    if not _cpu_groups:
        _cpu_groups.append(distributed.new_group(backend="gloo", timeout=TIMEOUT))
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), local_rank, _cpu_groups[0])


def shutdown() -> None:
    """Destroy the process group; required before the interpreter exits.

    Otherwise the threads of gloo may release their buffers while Python is torn down, and the process ends by SIGABRT,
    "terminate called without an active exception" (pytorch/pytorch#190489).
    """
    _cpu_groups.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_sharded(tensor: Tensor) -> bool:
    """Return True if each process has only a part of the tensor (FSDP), whose gradients are summed already."""
    return hasattr(tensor, "placements")
