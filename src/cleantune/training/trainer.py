"""The loop: what `score`, `p_wrong` and `learn` do, and the only backward() of the project."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.data.model_inputs import to_device
from cleantune.distributed.process_group import SINGLE_PROCESS
from cleantune.errors import UserError
from cleantune.kernels.to_delete.halves import half_of_the_threads
from cleantune.label_quality.posterior import p_wrong
from cleantune.methods.protocol import Batch, Inputs, LossOutput, ProbeStatistics, Selection, View
from cleantune.training.batches import Item
from cleantune.training.checkpoint import State, min_batch_size, split_batches
from cleantune.training.mlp_head import MLPHead
from cleantune.training.models import Net, unwrap_head
from cleantune.training.optim import forget_gradients, lr_factor, set_learning_rates

Stepping = tuple[list[nn.Module], list[torch.optim.Optimizer], Callable[..., Tensor | LossOutput]]
"""What learns, what steps it, and by which loss."""


class Trainer(State):
    """The verbs on the state of a run; a `Run` in the sense of records."""

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """`fn(y, *logits)` of every training sample in the plain view, without gradient: [N, ...].

        While no step has touched the backbone the cached features stand for it: the same numbers for free.
        """
        with self.cost.timed("score"), self._spending("forward_passes"):
            return self._look("train", fn, list(nets))

    @property
    def probe_statistics(self) -> ProbeStatistics | None:
        """Statistics of the last phase of scope `head` that learned from every sample."""
        if "late_p" not in self.ledger:
            return None
        return ProbeStatistics(*(self.ledger[name] for name in ("loss", "late_loss", "late_p")))

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Float[Tensor, " N"]:
        """The probability that each given label is wrong, from the features of the moment: [N]."""
        features = self._remade("train")["train"] if self.features_stale else self.splits["train"].features.plain  # type: ignore[attr-defined]
        with self.cost.timed("score"):
            return p_wrong(features, self.y, self.classes, class_balance, flip_concentration_threshold)

    def learn(
        self,
        nets: nn.Module | list[nn.Module],
        loss: Callable[..., Tensor | LossOutput],
        selection: Selection | None = None,
        *,
        weak: int = 1,
        strong: int = 0,
        passes: float = 1.0,
    ) -> None:
        """SGD over the plan; see `records.Run`. A trailing batch of less than an eighth joins the batch before it.

        Raises:
            UserError: The plan keeps nothing, or the loss is not finite.
        """
        assert self.phase is not None
        self.looks = {}
        modules = nets if isinstance(nets, list) else [nets]
        optimizers = [self.left[self.phase.name][self.nets.index(module)][1] for module in modules]
        self.row["selected"] = None if selection is None else int(selection.mask.sum())
        self.selection = selection = selection or Selection.of(torch.ones(len(self.y), dtype=torch.bool))
        if not selection.mask.any():
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the plan keeps none of {len(self.y)} samples;"
                " lower method.tau or use more data"
            )
        weakly: tuple[View, ...] = ("weak",)
        strongly: tuple[View, ...] = ("strong",)
        views = weakly * weak + strongly * strong
        passes = max(passes, self._least_passes(int(selection.mask.sum())))
        with self.cost.timed("probe" if self._scope == "head" else "tune"), self._spending("forward_passes"):
            for module in modules:
                module.train()
            for net in self.whole:
                net.sharing = self.ranks
            with half_of_the_threads() if self._halves() else nullcontext():
                for done in range(math.ceil(passes)):
                    self._one_pass((modules, optimizers, loss), selection, views, done, passes)
            for net in self.whole:
                net.sharing = SINGLE_PROCESS

    # -- the inside of learn -----------------------------------------------------------------------------------------

    def _one_pass(
        self, stepping: Stepping, selection: Selection, views: tuple[View, ...], done: int, passes: float
    ) -> None:
        """One pass over the plan, or the part of it that is left: one forward, one backward, one step a batch."""
        assert self.phase is not None
        modules, optimizers, loss = stepping
        part = min(1.0, passes - done)
        order = self._draw(selection)
        least = 1 if self.phase.mlp is None else 2  # an MLP head may hold a BatchNorm
        size = self.phase.stage.batch_size
        batches = split_batches(order[: max(least, round(part * len(order)))], size, min_batch_size(size))
        sizes = [len(batch) for batch in batches]
        # Written in place, as any small tensor that outlives its step splits the memory that a large one has left.
        taken: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(sizes), device=self.device))
        for j, batch in enumerate(self._batches(batches, self._rest(selection, batches), selection, views)):
            share = (done + part * j / len(sizes)) / passes
            self.progress = self.epoch + share
            rate = lr_factor(self.phase.stage, self._along(share))
            made = loss(*modules, batch)
            made = LossOutput(made, {}) if isinstance(made, Tensor) else made
            self._take_down(made, taken, j)
            for optimizer in optimizers:
                set_learning_rates(optimizer, rate)
                forget_gradients(optimizer)
            made.total.backward()  # type: ignore[no-untyped-call]
            self._join_gradients(modules)
            for optimizer in optimizers:
                optimizer.step()
        seen = sum(sizes)
        self.cost.training_samples += seen
        self.cost.optimizer_steps += len(optimizers) * len(batches)
        if self._scope == "all":
            self.backbone_changed = self.features_stale = True
        weight = torch.tensor(sizes, dtype=torch.float32)
        self._note({name: float(values.cpu() @ weight / seen) for name, values in taken.items()}, optimizers[0])

    def _take_down(self, made: LossOutput, taken: dict[str, Tensor], j: int) -> None:
        """A loss and its components, each at place `j` of its tensor, and its warning."""
        taken["loss"][j] = made.total.detach()
        for name, part in made.components.items():
            taken[f"loss_{name}"][j] = part.detach()
        if made.warning is not None and made.warning not in self.row.get("warnings", []):
            self.row["warnings"] = [*self.row.get("warnings", []), made.warning]

    def _join_gradients(self, modules: list[nn.Module]) -> None:
        """Backbones saw a share of the rows on each rank; heads saw all of them on every rank."""
        for module in modules:
            if isinstance(module, Net) and module.backbone is not None:
                self.ranks.all_reduce_gradients(module.backbone.parameters())

    def settle(self) -> None:
        """Make sure that all ranks have come to the same nets, ledgers and luck.

        Raises:
            UserError: They have not.
        """
        assert self.phase is not None
        heads = [value for net in self.whole for value in net.head.state_dict().values()]
        ledgers = [value for ledger in (self.ledger, self.validation_ledger) for value in ledger.state_dict().values()]
        if not self.ranks.is_identical([self.rng.get_state(), *heads, *ledgers]):
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the ranks have come to different numbers;"
                " run them on machines with the same processor, GPU and versions of the libraries"
            )

    def _least_passes(self, samples: int) -> float:
        """Passes an epoch that give the stage's least number of steps."""
        assert self.phase is not None
        stage = self.phase.stage
        return stage.min_steps / stage.epochs / -(-samples // stage.batch_size)

    def _along(self, share: float) -> float:
        """The place in the schedule at a share of this epoch."""
        assert self.phase is not None
        start, end = self.phase.schedule_span
        return start + (end - start) * (self.epoch + share) / self.phase.stage.epochs

    def _note(self, means: dict[str, float], optimizer: torch.optim.Optimizer) -> None:
        """Loss, its components and the rate for the row.

        Raises:
            UserError: The loss is not finite.
        """
        assert self.phase is not None
        if not math.isfinite(means["loss"]):
            name, stage = self.phase.name, self.phase.stage
            backbone = f" or backbone_learning_rate ({stage.backbone_learning_rate:g})" if self._scope == "all" else ""
            raise UserError(
                f"phase {name}, epoch {self.epoch}: the loss is not finite;"
                f" lower method.{name}.learning_rate ({stage.learning_rate:g}){backbone}"
            )
        self.row |= means | {"learning_rate": optimizer.param_groups[0]["lr"]}

    def _draw(self, selection: Selection) -> Tensor:
        """The samples of one pass in their order."""
        if selection.sampling_weights is not None:
            count = int(selection.mask.sum())
            return torch.multinomial(selection.sampling_weights.double(), count, replacement=True, generator=self.rng)
        kept = selection.mask.nonzero().flatten()
        return kept[torch.randperm(len(kept), generator=self.rng)]

    def _rest(self, selection: Selection, batches: list[Tensor]) -> list[Tensor]:
        """The plan's share of the rest for every batch, in shuffled rounds."""
        if selection.unlabeled is None or not selection.unlabeled.any():
            return []
        unlabeled = selection.unlabeled.nonzero().flatten()
        sizes = [max(1, int(selection.unlabeled_ratio * len(b))) for b in batches]
        needed = sum(sizes)
        rounds = [
            unlabeled[torch.randperm(len(unlabeled), generator=self.rng)] for _ in range(-(-needed // len(unlabeled)))
        ]
        return list(torch.split(torch.cat(rounds)[:needed], sizes))

    def _batches(
        self, batches: list[Tensor], unlabeled: list[Tensor], selection: Selection, views: tuple[View, ...]
    ) -> Iterator[Batch]:
        """Batches with their views; the views' luck is one number from the run's generator."""
        source = self._source("train")
        seed = int(torch.randint(2**62, (), generator=self.rng))
        # Dropout inside a backbone draws from the global generator: seeded here, it needs no place in a checkpoint.
        _seed(seed + self.ranks.rank, self.device)
        for k, net in enumerate(self.whole):
            head = unwrap_head(net.head)
            if isinstance(head, MLPHead):
                head.reseed(seed + k)
        prefetch = self.device.type == "cuda"
        stream = self._samples(source.batches(batches, views, seed, prefetch=prefetch), batches, selection.weight)
        if not unlabeled:
            return stream
        others = source.batches(unlabeled, views, seed + 1, prefetch=prefetch)
        beside = self._samples(others, unlabeled, torch.zeros(len(self.y)))
        return (batch._replace(unlabeled=other) for batch, other in zip(stream, beside, strict=True))

    def _halves(self) -> bool:
        """Whether batches that learn now pass through a backbone as halves."""
        return self._scope == "all" and any(net.may_be_halved() for net in self.whole)

    def _samples(self, stream: Iterator[Item], batches: list[Tensor], weight: Tensor) -> Iterator[Batch]:
        """Batches where the nets are; the rows stay on the CPU, where the ledger is. Labels go there once a pass."""
        order, sizes = torch.cat(batches), [len(batch) for batch in batches]
        labels = torch.split(self.y[order].to(self.device), sizes)
        weights = torch.split(weight[order].to(self.device), sizes)
        for (rows, xs), y, w in zip(stream, labels, weights, strict=True):
            yield Batch(rows, y, w, tuple(to_device(x, self.device) for x in xs))

    # -- looking -----------------------------------------------------------------------------------------------------

    def probabilities(self, split: str) -> Float[Tensor, "N C"]:
        """Softmax of every sample of a split, the mean over the nets; counted as evaluation.

        Splits that are held out are not looked at again before the nets have moved.
        """
        if split == "train":
            return self._probabilities(split)
        now = self._versions()
        then, p = self.looks.get(split, (None, torch.empty(0)))
        if then != now:
            p = self._probabilities(split)
            self.looks[split] = now, p
        return p

    def _probabilities(self, split: str) -> Float[Tensor, "N C"]:
        with self.cost.timed("evaluate"), self._spending("evaluation_forward_passes"):
            return self._look(split, lambda y, *logits: torch.stack([a.softmax(1) for a in logits]).mean(0), self.nets)

    def _versions(self) -> list[int]:
        """How often each tensor that a look passes through was written to; others in their place forget the looks."""
        modules = self._passed(self.nets)
        return [t._version for module in modules for t in itertools.chain(module.parameters(), module.buffers())]

    def _passed(self, nets: list[nn.Module]) -> list[nn.Module]:
        """What a look passes samples or their cached features through."""
        return [net.head if self.uses_cached_features and isinstance(net, Net) else net for net in nets]

    def _look(self, split: str, fn: Callable[..., Tensor], nets: list[nn.Module]) -> Tensor:
        """`fn(y, *logits)` of every sample of a split, in order."""
        data, modules = self.splits[split], self._passed(nets)
        source = data.features if self.uses_cached_features else self._source(split)

        def judged(index: Tensor, x: Inputs) -> Tensor:
            return fn(data.y[index].to(self.device), *(module(x).logits.float() for module in modules))

        for module in modules:
            module.eval()
        return self._pass_over(source, judged)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of a device; `torch.manual_seed` goes through those of every kind."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
