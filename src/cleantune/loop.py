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
from cleantune.records import Batch, Inputs, Phase, Plan, View
from cleantune.schedule import factor, make_optimiser, set_rates
from cleantune.sources import FeatureSource, Source

LOOK_BATCH = 256
"""Samples a batch when nothing is learned."""

Stepping = tuple[list[nn.Module], list[torch.optim.Optimizer], Callable[..., Tensor]]
"""What learns, what steps it, and by which loss."""


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

    State lives in nets, optimisers, ledgers and the generator; `state` and `resume` carry exactly these.
    """

    def __init__(
        self,
        nets: list[Net],
        splits: Mapping[str, Split],
        classes: int,
        seed: int,
        new_head: Callable[[Any, int], nn.Module],
        device: str = "cpu",
    ) -> None:
        """A run before its first phase.

        Args:
            nets: One, or two for methods with a peer.
            splits: `train`, and `validation`, `test`, `unlabelled` where they exist.
            classes: Number of classes C.
            seed: Of the only generator.
            new_head: From features [N, D] and the number of the net to a fresh head.
            device: Where the nets compute; labels, ledgers and the generator stay on the CPU.
        """
        self.device = torch.device(device)
        self.whole = [net.to(self.device) for net in nets]
        self.pretrained = dict(splits)
        self.splits = dict(splits)
        self.y = splits["train"].y
        self.classes = classes
        self.rng = torch.Generator().manual_seed(seed)
        self.new_head = new_head
        self.ledger = Ledger(len(self.y))
        self.validation_ledger = Ledger(len(splits["validation"].y) if "validation" in splits else 0)
        self.cost = Cost()
        self.touched = False
        """Whether the backbones differ from the pre-trained ones."""
        self.stale = False
        """Whether they have changed since the features were made."""
        self.epoch = 0
        self.phase: Phase | None = None
        self.plan: Plan | None = None
        """What was learned from last, for whoever measures it."""
        self.left: dict[str, list[tuple[nn.Module, torch.optim.Optimizer]]] = {}
        """Heads and optimisers, a pair a net, by the name of the phase that had them last."""
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
        passes: float = 1.0,
    ) -> None:
        """SGD over the plan; see `records.Run`. A trailing batch of one sample joins the batch before it.

        Raises:
            UserError: The plan keeps nothing, or the loss is not finite.
        """
        assert self.phase is not None
        modules = nets if isinstance(nets, list) else [nets]
        optimisers = [self.left[self.phase.name][self.nets.index(module)][1] for module in modules]
        self.row["selected"] = None if plan is None else int(plan.keep.sum())
        self.plan = plan = plan or Plan.of(torch.ones(len(self.y), dtype=torch.bool))
        if not plan.keep.any():
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the plan keeps none of {len(self.y)} samples;"
                " lower method.tau or use more data"
            )
        weakly: tuple[View, ...] = ("weak",)
        strongly: tuple[View, ...] = ("strong",)
        views = weakly * weak + strongly * strong
        passes = max(passes, self._least_passes(int(plan.keep.sum())))
        with self.cost.timed("probe" if self._scope == "head" else "tune"), self._spending("forwards"):
            for module in modules:
                module.train()
            for done in range(math.ceil(passes)):
                self._one_pass((modules, optimisers, loss), plan, views, done, passes)

    # -- the inside of learn -----------------------------------------------------------------------------------------

    def _one_pass(self, stepping: Stepping, plan: Plan, views: tuple[View, ...], done: int, passes: float) -> None:
        """One pass over the plan, or the part of it that is left: one forward, one backward, one step a batch."""
        assert self.phase is not None
        modules, optimisers, loss = stepping
        part = min(1.0, passes - done)
        order = self._draw(plan)
        batches = cut(order[: max(1, round(part * len(order)))], self.phase.stage.batch_size)
        total, seen = torch.zeros(()), 0
        for j, batch in enumerate(self._batches(batches, self._rest(plan, batches), plan, views)):
            rate = factor(self.phase.stage, self._along((done + part * j / len(batches)) / passes))
            value = loss(*modules, batch)
            for optimiser in optimisers:
                set_rates(optimiser, rate)
                optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            for optimiser in optimisers:
                optimiser.step()
            total += value.detach().cpu() * len(batch.rows)
            seen += len(batch.rows)
            self.cost.training_samples += len(batch.rows)
            self.cost.optimiser_steps += len(optimisers)
        if self._scope == "all":
            self.touched = self.stale = True
        self._note(float(total) / seen, optimisers[0])

    def _least_passes(self, samples: int) -> float:
        """Passes an epoch that give the stage's least number of steps."""
        assert self.phase is not None
        stage = self.phase.stage
        return stage.least_steps / stage.epochs / -(-samples // stage.batch_size)

    def _along(self, share: float) -> float:
        """The place in the schedule at a share of this epoch."""
        assert self.phase is not None
        start, end = self.phase.span
        return start + (end - start) * (self.epoch + share) / self.phase.stage.epochs

    def _note(self, mean: float, optimiser: torch.optim.Optimizer) -> None:
        """Loss and rate for the row.

        Raises:
            UserError: The loss is not finite.
        """
        assert self.phase is not None
        if not math.isfinite(mean):
            name, stage = self.phase.name, self.phase.stage
            backbone = f" or backbone_learning_rate ({stage.backbone_learning_rate:g})" if self._scope == "all" else ""
            raise UserError(
                f"phase {name}, epoch {self.epoch}: the loss is not finite;"
                f" lower method.{name}.learning_rate ({stage.learning_rate:g}){backbone}"
            )
        self.row |= {"loss": mean, "learning_rate": optimiser.param_groups[0]["lr"]}

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
        # Dropout inside a backbone draws from the global generator: seeded here, it needs no place in a checkpoint.
        torch.manual_seed(seed)
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
    def free_to_look(self) -> bool:
        """Whether a look at every training sample costs no forward."""
        return self._scope == "head" or not self.stale

    @property
    def wall(self) -> float:
        """Seconds since the run began, interruptions left out."""
        return time.perf_counter() - self.started

    def _look(self, split: str, fn: Callable[..., Tensor], nets: list[nn.Module]) -> Tensor:
        """`fn(y, *logits)` of every sample of a split, in order."""
        data, cached = self.splits[split], self.free_to_look
        source = data.features if cached else self._source(split)
        modules = [net.head if cached and isinstance(net, Net) else net for net in nets]

        def judged(index: Tensor, x: Inputs) -> Tensor:
            return fn(data.y[index].to(self.device), *(module(x).logits.float() for module in modules))

        for module in modules:
            module.eval()
        return self._pass_over(source, judged)

    def _pass_over(self, source: Source, fn: Callable[[Tensor, Inputs], Tensor]) -> Tensor:
        """`fn(index, x)` of all samples of a source in the plain view, in the order of the rows."""
        order, out = source.order(), []
        with torch.no_grad():
            for index, xs in source.batches(cut(order, LOOK_BATCH), ("plain",), 0):
                out.append(fn(index, moved(xs[0], self.device)).cpu())
        found = torch.cat(out)
        values = torch.empty_like(found)
        values[order] = found
        return values

    def _refresh(self) -> None:
        """New features of all splits from the backbone as it is now."""
        net = self.whole[0]
        assert len(self.whole) == 1, "heads of several nets cannot share features once their backbones differ"
        net.eval()
        for split, data in self.splits.items():
            assert data.samples is not None
            name, account = ("score", "forwards") if split == "train" else ("evaluate", "evaluation_forwards")
            with self.cost.timed(name), self._spending(account):
                features = self._pass_over(data.samples, lambda _, x: net.features(x))
            self.splits[split] = replace(data, features=FeatureSource(features))
        self.stale = False

    # -- phases and state --------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Begin a phase: what learns, from what, and with which heads and optimisers."""
        if phase.scope == "all" and self.splits["train"].samples is None:
            raise UserError('these data are features without a backbone: only --scope head (method.scope="head") works')
        self.phase = phase
        if phase.scope == "head" and self.stale:
            self._refresh()
        self._equip(phase)

    def _equip(self, phase: Phase) -> None:
        """The heads and optimisers of a phase, in their places."""
        for net in self.whole:
            net.freeze_batchnorm = phase.stage.freeze_batchnorm
            if net.backbone is not None:
                net.backbone.requires_grad_(phase.scope == "all")
        if phase.head == "own":
            for net, (head, _) in zip(self.whole, self.left[phase.name], strict=True):
                net.head = head
            return
        if phase.head == "new":
            features = self.splits["train"].features.features  # type: ignore[attr-defined]
            for k, net in enumerate(self.whole):
                net.head = self.new_head(features, k).to(self.device)
        self.left[phase.name] = [(net.head, make_optimiser(net, phase)) for net in self.whole]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs: tensors by name, and the counters."""
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()} | self._learned()
        for name, candidate in self.candidates.items():
            tensors |= {f"candidate.{name}.{key}": value for key, value in candidate.items()}
        for name, pairs in self.left.items():
            for k, (head, optimiser) in enumerate(pairs):
                tensors |= {f"left.{name}.{k}.head.{key}": value for key, value in head.state_dict().items()}
                for i, slots in optimiser.state_dict()["state"].items():
                    tensors |= {f"left.{name}.{k}.slot.{i}.{s}": torch.as_tensor(v) for s, v in slots.items()}
        for name, ledger in (("ledger", self.ledger), ("validation", self.validation_ledger)):
            tensors |= {f"{name}.{column}": value for column, value in ledger.state_dict().items()}
        counters = {"cost": asdict(self.cost), "touched": self.touched, "stale": self.stale, "wall": self.wall}
        return tensors, counters

    def resume(self, entered: list[Phase], tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Args:
            entered: The phases that were entered before it was saved, the current one last.
            tensors: From `state`.
            counters: From `state`.
        """
        self.touched = bool(counters["touched"])
        self._learn_from(tensors)
        for phase in entered:
            self.phase = phase
            self._equip(phase)
        if entered[-1].scope == "head" and self.touched:
            self._refresh()
        self.stale = bool(counters["stale"])
        for name, pairs in self.left.items():
            for k, (head, optimiser) in enumerate(pairs):
                head.load_state_dict(below(tensors, f"left.{name}.{k}.head."))
                slots: dict[int, dict[str, Tensor]] = {}
                for key, value in below(tensors, f"left.{name}.{k}.slot.").items():
                    i, slot = key.split(".", 1)
                    slots.setdefault(int(i), {})[slot] = value
                optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
                lay_out(optimiser)
        for key, value in below(tensors, "candidate.").items():
            name, rest = key.split(".", 1)
            self.candidates.setdefault(name, {})[rest] = value
        self.ledger.load_state_dict(below(tensors, "ledger."))
        self.validation_ledger.load_state_dict(below(tensors, "validation."))
        self.rng.set_state(tensors["rng"])
        self.cost = Cost(**counters["cost"])
        self.started -= counters["wall"]

    def keep(self, name: str) -> None:
        """Keep a copy of what the nets have learned as a candidate for delivery."""
        learned = self._learned()
        for k, net in enumerate(self.whole):
            learned |= {f"head.{k}.{key}": value for key, value in net.head.state_dict().items()}
        self.candidates[name] = {key: value.detach().cpu().clone() for key, value in learned.items()}

    def deliver(self, fresh: list[Net], candidate: str) -> None:
        """Take the nets of a candidate in the place of the last ones.

        Args:
            fresh: Nets as they were before the first phase.
            candidate: A name that `keep` was given.
        """
        tensors = self.candidates[candidate]
        self.touched = self.stale = any(name.startswith("backbone.") for name in tensors)
        self.whole = [net.to(self.device) for net in fresh]
        if self.touched:
            self._learn_from(tensors)
        self.splits = dict(self.pretrained)
        for k, net in enumerate(self.whole):
            net.head.load_state_dict(below(tensors, f"head.{k}."))
        assert self.phase is not None
        self.phase = replace(self.phase, scope="all" if self.touched else "head")

    def _learned(self) -> dict[str, Tensor]:
        """The backbones, once a step has touched them."""
        if not self.touched:
            return {}
        states = [net.backbone.state_dict() if net.backbone is not None else {} for net in self.whole]
        return {f"backbone.{k}.{name}": value for k, state in enumerate(states) for name, value in state.items()}

    def _learn_from(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `_learned`."""
        for k, net in enumerate(self.whole):
            if net.backbone is not None and (state := below(tensors, f"backbone.{k}.")):
                net.backbone.load_state_dict(state)

    @property
    def _scope(self) -> str:
        return "head" if self.phase is None else self.phase.scope

    def _source(self, split: str) -> Source:
        data = self.splits[split]
        if self._scope == "head":
            return data.features
        assert data.samples is not None
        return data.samples

    @contextmanager
    def _spending(self, account: str) -> Iterator[None]:
        """Book the forwards that pass through the backbones inside on an account of the cost."""
        before = sum(net.looked + 3 * net.trained for net in self.whole)
        yield
        after = sum(net.looked + 3 * net.trained for net in self.whole)
        setattr(self.cost, account, getattr(self.cost, account) + after - before)


def lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Give the moments the memory layout of their parameters.

    A file gives contiguous tensors, but fused AdamW reads memory as it lies: beside channels-last weights the moments
    would belong to other weights.
    """
    for parameter, slots in optimiser.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)


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
