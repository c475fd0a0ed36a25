"""The loop: what `score` and `learn` do, and the only backward() of the project."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cleantune.errors import UserError
from cleantune.learner import Net
from cleantune.ledger import Ledger
from cleantune.records import Batch, Inputs, Phase, Plan, Stage, View
from cleantune.sources import Source

LOOK_BATCH = 256
"""Samples a batch when nothing is learned."""


@dataclass(frozen=True)
class Split:
    """One split as the loop sees it: given labels, cached features, and samples where there are any."""

    y: Int[Tensor, " N"]
    features: Source
    samples: Source | None


@dataclass
class Cost:
    """What a run has spent; forwards are in the unit F of spec section 6."""

    forwards: int = 0
    """A sample looked at through the backbone is 1, a sample trained on through it is 3."""
    evaluation_forwards: int = 0
    """Looks that the method did not ask for: validation, test, the last look at the training split."""
    training_samples: int = 0
    optimiser_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Loop:
    """The state of a run and the two verbs on it; a `Run` in the sense of records.

    State lives in nets, optimisers, ledgers and the generator, and `state` and `restore` carry exactly these.
    """

    def __init__(
        self, nets: list[Net], splits: Mapping[str, Split], classes: int, seed: int, device: str = "cpu"
    ) -> None:
        """A run before its first phase.

        Args:
            nets: One, or two for methods with a peer.
            splits: `train`, and `validation` and `test` where they exist.
            classes: Number of classes C.
            seed: Of the only generator.
            device: Where the nets compute; labels, ledgers and the generator stay on the CPU.
        """
        self.device = torch.device(device)
        self.whole = [net.to(self.device) for net in nets]
        self.splits = splits
        self.y = splits["train"].y
        self.classes = classes
        self.rng = torch.Generator().manual_seed(seed)
        self.ledger = Ledger(len(self.y))
        self.validation_ledger = Ledger(len(splits["validation"].y) if "validation" in splits else 0)
        self.cost = Cost()
        self.touched = False
        self.epoch = 0
        self.phase: Phase | None = None
        self.plan: Plan | None = None
        """What was learned from last, for whoever measures it."""
        self.optimisers: list[torch.optim.Optimizer] = []
        self.row: dict[str, Any] = {}
        """What the verbs did in this epoch, for its row."""
        self.started = time.perf_counter()
        """When this sitting of the run began; earlier sittings are added on resume."""
        self.candidates: dict[str, dict[str, Tensor]] = {}
        """Nets of earlier epochs that may yet be delivered, by name."""

    # -- what a method sees ------------------------------------------------------------------------------------------

    @property
    def nets(self) -> list[nn.Module]:
        """What learns in this phase: heads, which take cached features, or whole nets, which take samples."""
        return [net.head for net in self.whole] if self._scope == "head" else list(self.whole)

    @property
    def net(self) -> nn.Module:
        """The only net of a method that trains one."""
        return self.nets[0]

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """`fn(y, *logits)` of every training sample in the plain view, without gradient: [N, ...].

        While no step has touched the backbone the cached features stand for it: the same numbers for free.
        """
        with self.cost.timed("score"), self._spending("forwards"):
            return self._look("train", fn, list(nets))

    def learn(
        self,
        nets: nn.Module | list[nn.Module],
        loss: Callable[..., Tensor],
        plan: Plan | None = None,
        *,
        weak: int = 1,
        strong: int = 0,
        passes: int = 1,
    ) -> None:
        """SGD over the plan; see `records.Run`. A trailing batch of one sample joins the batch before it.

        Raises:
            UserError: The plan keeps nothing, or the loss is not finite.
        """
        assert self.phase is not None
        modules = nets if isinstance(nets, list) else [nets]
        optimisers = [self.optimisers[self._position(module)] for module in modules]
        if plan is not None:
            self.row["selected"] = int(plan.keep.sum())
        self.plan = plan = plan or Plan.of(torch.ones(len(self.y), dtype=torch.bool))
        if not plan.keep.any():
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the plan keeps none of {len(self.y)} samples;"
                " lower method.tau or use more data"
            )
        views: tuple[View, ...] = ("weak",) * weak + ("strong",) * strong
        with self.cost.timed(self.phase.name), self._spending("forwards"):
            for module in modules:
                module.train()
            for done in range(passes):
                self._one_pass(modules, optimisers, loss, plan, views, (done, passes))

    # -- the inside of learn -----------------------------------------------------------------------------------------

    def _one_pass(
        self,
        modules: list[nn.Module],
        optimisers: list[torch.optim.Optimizer],
        loss: Callable[..., Tensor],
        plan: Plan,
        views: tuple[View, ...],
        progress: tuple[int, int],
    ) -> None:
        """One pass over the plan: draw batches, and for each one forward, one backward, one step."""
        assert self.phase is not None
        stage = self.phase.stage
        batches = cut(self._draw(plan), stage.batch_size)
        rest = self._rest(plan, batches)
        done, passes = progress
        total, seen = torch.zeros(()), 0
        for j, batch in enumerate(self._batches(batches, rest, plan, views)):
            share = (self.epoch + (done + j / len(batches)) / passes) / stage.epochs
            value = loss(*modules, batch)
            for optimiser in optimisers:
                set_rates(optimiser, factor(stage, share))
                optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            for optimiser in optimisers:
                optimiser.step()
            total += value.detach().cpu() * len(batch.index)
            seen += len(batch.index)
            self.cost.training_samples += len(batch.index)
            self.cost.optimiser_steps += len(optimisers)
        self.touched |= self._scope == "all"
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the loss is not finite;"
                f" lower method.{self.phase.name}.learning_rate ({stage.learning_rate:g})"
                + (f" or backbone_learning_rate ({stage.backbone_learning_rate:g})" if self._scope == "all" else "")
            )
        self.row |= {"loss": mean, "learning_rate": optimisers[0].param_groups[0]["lr"]}

    def _draw(self, plan: Plan) -> Tensor:
        """The samples of one pass in their order."""
        if plan.draw is not None:
            count = int(plan.keep.sum())
            return torch.multinomial(plan.draw.double(), count, replacement=True, generator=self.rng)
        kept = plan.keep.nonzero().flatten()
        return kept[torch.randperm(len(kept), generator=self.rng)]

    def _rest(self, plan: Plan, batches: list[Tensor]) -> list[Tensor]:
        """As many samples of the rest for every batch, in shuffled rounds."""
        if plan.rest is None or not plan.rest.any():
            return []
        rest = plan.rest.nonzero().flatten()
        needed = sum(len(b) for b in batches)
        rounds = [rest[torch.randperm(len(rest), generator=self.rng)] for _ in range(-(-needed // len(rest)))]
        return list(torch.split(torch.cat(rounds)[:needed], [len(b) for b in batches]))

    def _batches(
        self, batches: list[Tensor], rest: list[Tensor], plan: Plan, views: tuple[View, ...]
    ) -> Iterator[Batch]:
        """Batches with their views; the views' luck is one number from the run's generator."""
        source = self._source("train")
        seed = int(torch.randint(2**62, (), generator=self.rng))
        stream = source.batches(batches, views, seed)
        beside = source.batches(rest, views, seed + 1) if rest else None
        for index, xs in stream:
            batch = self._batch(index, plan.weight[index], xs)
            if beside is not None:
                other, other_xs = next(beside)
                batch = batch._replace(rest=self._batch(other, torch.zeros(len(other)), other_xs))
            yield batch

    def _batch(self, index: Tensor, weight: Tensor, xs: tuple[Inputs, ...]) -> Batch:
        """The samples where the nets are; the index stays on the CPU, where the ledger is."""
        views = tuple(moved(x, self.device) for x in xs)
        return Batch(index, self.y[index].to(self.device), weight.to(self.device), views)

    # -- looking -----------------------------------------------------------------------------------------------------

    def probabilities(self, split: str) -> Float[Tensor, "N C"]:
        """Softmax of every sample of a split, the mean over the nets; counted as evaluation."""
        with self.cost.timed("evaluate"), self._spending("evaluation_forwards"):
            return self._look(split, lambda y, *logits: torch.stack([a.softmax(1) for a in logits]).mean(0), self.nets)

    @property
    def wall(self) -> float:
        """Seconds since the run began, interruptions left out."""
        return time.perf_counter() - self.started

    @property
    def free_to_look(self) -> bool:
        """Whether a look at every training sample costs no forward."""
        return self._scope == "head" or not self.touched

    def _look(self, split: str, fn: Callable[..., Tensor], nets: list[nn.Module]) -> Tensor:
        """`fn(y, *logits)` of every sample of a split, in order."""
        data = self.splits[split]
        cached = self.free_to_look
        source = data.features if cached else self._source(split)
        modules = [net.head if cached and isinstance(net, Net) else net for net in nets]
        order = source.order()
        out = []
        with torch.no_grad():
            for module in modules:
                module.eval()
            for index, xs in source.batches(cut(order, LOOK_BATCH), ("plain",), 0):
                x = moved(xs[0], self.device)
                logits = [module(x).logits.float() for module in modules]
                out.append(fn(data.y[index].to(self.device), *logits).cpu())
        found = torch.cat(out)
        values = torch.empty_like(found)
        values[order] = found
        return values

    # -- phases and state --------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Begin a phase: what learns, from what, and with which optimisers."""
        if phase.scope == "all" and self.splits["train"].samples is None:
            raise UserError('these data are features without a backbone: only --scope head is possible (method.scope="head")')
        self.phase = phase
        for net in self.whole:
            net.freeze_batchnorm = phase.stage.freeze_batchnorm
            if net.backbone is not None:
                net.backbone.requires_grad_(phase.scope == "all")
        self.optimisers = [make_optimiser(net, phase) for net in self.whole]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs: tensors by name, and the counters."""
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()}
        tensors |= self._learned()
        for name, candidate in self.candidates.items():
            tensors |= {f"candidate.{name}.{key}": value for key, value in candidate.items()}
        for k, optimiser in enumerate(self.optimisers):
            for i, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{k}.{i}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        for name, ledger in (("ledger", self.ledger), ("validation", self.validation_ledger)):
            tensors |= {f"{name}.{column}": value for column, value in ledger.state_dict().items()}
        return tensors, {"cost": asdict(self.cost), "touched": self.touched, "wall": self.wall}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to a saved state; `enter` must have been called for its phase."""
        self.rng.set_state(tensors["rng"])
        self.touched = bool(counters["touched"])
        self.started -= counters["wall"]
        self.cost = Cost(**counters["cost"])
        self._learn_from(tensors)
        for key, value in below(tensors, "candidate.").items():
            name, rest = key.split(".", 1)
            self.candidates.setdefault(name, {})[rest] = value
        for k, optimiser in enumerate(self.optimisers):
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in below(tensors, f"optimiser.{k}.").items():
                i, slot = name.split(".", 1)
                slots.setdefault(int(i), {})[slot] = value
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        self.ledger.load_state_dict(below(tensors, "ledger."))
        self.validation_ledger.load_state_dict(below(tensors, "validation."))

    def keep(self, name: str) -> None:
        """Keep a copy of what the nets have learned as a candidate for delivery."""
        self.candidates[name] = {key: value.detach().cpu().clone() for key, value in self._learned().items()}

    def _learned(self) -> dict[str, Tensor]:
        """What differs from the start: the heads, and the backbones once a step has touched them."""
        tensors: dict[str, Tensor] = {}
        for k, net in enumerate(self.whole):
            tensors |= {f"head.{k}.{name}": value for name, value in net.head.state_dict().items()}
            if self.touched and net.backbone is not None:
                tensors |= {f"backbone.{k}.{name}": value for name, value in net.backbone.state_dict().items()}
        return tensors

    def _learn_from(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `_learned`."""
        for k, net in enumerate(self.whole):
            net.head.load_state_dict(below(tensors, f"head.{k}."))
            if net.backbone is not None and (backbone := below(tensors, f"backbone.{k}.")):
                net.backbone.load_state_dict(backbone)

    def deliver(self, fresh: list[Net], candidate: str) -> None:
        """Take the nets of a candidate in the place of the last ones.

        Args:
            fresh: Nets as they were before the first phase.
            candidate: A name that `keep` was given.
        """
        tensors = self.candidates[candidate]
        self.whole = [net.to(self.device) for net in fresh]
        self.touched = any(name.startswith("backbone.") for name in tensors)
        self._learn_from(tensors)

    @property
    def _scope(self) -> str:
        return "head" if self.phase is None else self.phase.scope

    def _source(self, split: str) -> Source:
        data = self.splits[split]
        if self._scope == "head":
            return data.features
        assert data.samples is not None
        return data.samples

    def _position(self, module: nn.Module) -> int:
        return next(k for k, net in enumerate(self.nets) if net is module)

    @contextmanager
    def _spending(self, account: str) -> Iterator[None]:
        """Book the forwards that pass through the backbones inside on an account of the cost."""
        before = sum(net.looked + 3 * net.trained for net in self.whole)
        yield
        after = sum(net.looked + 3 * net.trained for net in self.whole)
        setattr(self.cost, account, getattr(self.cost, account) + after - before)


def moved(x: Inputs, device: torch.device) -> Inputs:
    """The inputs on a device."""
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    return {name: value.to(device, non_blocking=True) for name, value in x.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def cut(order: Int[Tensor, " N"], size: int) -> list[Tensor]:
    """The order in batches; a last batch of one sample, on which BatchNorm cannot train, joins the one before it."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def make_optimiser(net: Net, phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser over what learns in a phase: the head, and the backbone with a rate of its own."""
    stage = phase.stage
    groups: list[dict[str, Any]] = [{"params": list(net.head.parameters()), "lr": stage.learning_rate}]
    if phase.scope == "all":
        assert net.backbone is not None
        assert stage.backbone_learning_rate is not None, "the resolved config states it"
        groups.append({"params": list(net.backbone.parameters()), "lr": stage.backbone_learning_rate})
    for group in groups:
        group["full_rate"] = group["lr"]
    if stage.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def factor(stage: Stage, share: float) -> float:
    """The part of the full learning rate at a share 0..1 of the phase: a linear rise, then constant or a cosine."""
    if share < stage.warmup:
        # Never exactly zero: the first step would be lost.
        return (share + 1e-3) / (stage.warmup + 1e-3)
    if stage.schedule == "constant":
        return 1.0
    along = (share - stage.warmup) / (1 - stage.warmup)
    return 0.5 * (1 + math.cos(math.pi * along))


def set_rates(optimiser: torch.optim.Optimizer, part: float) -> None:
    """Every group at a part of its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * part


def with_rates(phase: Phase, backbone_learning_rate: float) -> Phase:
    """The phase with the backbone's recommended rate where none is set."""
    stage = phase.stage
    if phase.scope == "head" or stage.backbone_learning_rate is not None:
        return phase
    return replace(phase, stage=replace(stage, backbone_learning_rate=backbone_learning_rate))
