"""The state of a run: nets, optimizers, ledgers and the generator, and how it is kept, resumed and delivered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from cleantune.data.model_inputs import raw_inputs, to_device
from cleantune.distributed.fsdp import like, shard, whole
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, SharedBatchNorm
from cleantune.errors import UserError
from cleantune.features.openvino import OpenVINOEncoder
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Inputs, MLPHeadConfig, Phase, Selection
from cleantune.training.batches import BatchSource, FeatureBatches, SampleBatches
from cleantune.training.lora import set_trainable
from cleantune.training.mlp_head import MLPHead
from cleantune.training.models import Net, ProjectedHead, head_from_config, head_to_config, unwrap_head
from cleantune.training.optim import make_optimizer


@dataclass(frozen=True)
class SplitData:
    """One split as the loop sees it: given labels, cached features, and samples where there are any."""

    y: Int[Tensor, " N"]
    features: BatchSource
    samples: BatchSource | None


@dataclass
class Cost:
    """What a run has spent; forward_passes are in the unit F of spec section 6."""

    forward_passes: int = 0
    """A sample looked at through the backbone is 1, a sample trained on through it is 3."""
    evaluation_forward_passes: int = 0
    """Looks that the method did not ask for: validation, test, the last look at the training split."""
    training_samples: int = 0
    optimizer_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class State:
    """All that a run is at a moment; it lives in nets, optimizers, ledgers and the generator.

    `state` and `resume` carry exactly these.
    """

    def __init__(
        self,
        nets: list[Net],
        splits: Mapping[str, SplitData],
        classes: int,
        seed: int,
        new_head: Callable[[Any, int], nn.Module],
        device: str = "cpu",
        ranks: ProcessGroup = SINGLE_PROCESS,
        sharded: bool = False,
    ) -> None:
        """A run before its first phase.

        Args:
            nets: One, or two for methods with a peer.
            splits: `train`, and `validation`, `test`, `unlabeled` where they exist.
            classes: Number of classes C.
            seed: Of the only generator.
            new_head: From features [N, D] and the number of the net to a fresh head.
            device: Where the nets compute; labels, ledgers and the generator stay on the CPU.
            ranks: The processes that share the run; each calls every verb.
            sharded: Whether backbones that learn are divided among them.
        """
        self.ranks = ranks
        self.sharded = sharded
        self.device = torch.device(device)
        self.whole = [net.to(self.device) for net in nets]
        self.pretrained = dict(splits)
        self.splits = dict(splits)
        self.y = splits["train"].y
        self.classes = classes
        self.seed = seed
        self.rng = torch.Generator().manual_seed(seed)
        self.new_head = new_head
        self.ledger = Ledger(len(self.y))
        self.validation_ledger = Ledger(len(splits["validation"].y) if "validation" in splits else 0)
        self.cost = Cost()
        self.backbone_changed = False
        """Whether the backbones differ from the pre-trained ones."""
        self.features_stale = False
        """Whether they have changed since the features were made."""
        self.epoch = 0
        self.progress = 0.0
        self.phase: Phase | None = None
        self.selection: Selection | None = None
        """What was learned from last, for whoever measures it."""
        self.left: dict[str, list[tuple[nn.Module, torch.optim.Optimizer]]] = {}
        """Heads and optimizers, a pair a net, by the name of the phase that had them last."""
        self.row: dict[str, Any] = {}
        """What the verbs did in this epoch, for its row."""
        self.started = time.perf_counter()
        """When this sitting of the run began; earlier sittings are added on resume."""
        self.looks: dict[str, tuple[list[int], Tensor]] = {}
        """Probabilities of held-out splits, and the versions of the nets' tensors that they are of."""
        self.candidates: dict[str, dict[str, Tensor]] = {}
        """Nets of earlier epochs that may yet be delivered, by name."""
        self.heads: dict[str, list[dict[str, Any]]] = {}
        """What the heads of the candidates are, by name: a note of each net's."""

    @property
    def nets(self) -> list[nn.Module]:
        """What learns in this phase: heads, which take cached features, or whole nets, which take samples."""
        return [net.head for net in self.whole] if self._scope == "head" else list(self.whole)

    @property
    def net(self) -> nn.Module:
        """The only net of a method that trains one."""
        return self.nets[0]

    @property
    def uses_cached_features(self) -> bool:
        """Whether a look at every training sample costs no forward."""
        return self._scope == "head" or not self.features_stale

    @property
    def wall(self) -> float:
        """Seconds since the run began, interruptions left out."""
        return time.perf_counter() - self.started

    def enter(self, phase: Phase) -> None:
        """Begin a phase: what learns, from what, and with which heads and optimizers."""
        assert phase.num_nets == len(self.whole), (
            f"phase {phase.name} trains {phase.num_nets} nets, the run has {len(self.whole)}"
        )
        if phase.scope == "all" and self.splits["train"].samples is None:
            raise UserError('these data are features without a backbone: only --scope head (method.scope="head") works')
        self.phase = phase
        if phase.scope == "head" and self.features_stale:
            self._refresh()
        self._equip(phase)

    def _equip(self, phase: Phase) -> None:
        """The heads and optimizers of a phase, in their places."""
        self.looks = {}
        for net in self.whole:
            net.freeze_batchnorm = phase.stage.freeze_batchnorm
            if net.backbone is not None:
                set_trainable(net.backbone, phase.scope == "all")
                if phase.scope == "all" and self.sharded:
                    shard(net.backbone, self.ranks)
                if not net.freeze_batchnorm:
                    SharedBatchNorm.become(net.backbone, self.ranks)
        if phase.head == "resume":
            for net, (head, _) in zip(self.whole, self.left[phase.name], strict=True):
                net.head = head
            return
        if phase.head == "new":
            for k, net in enumerate(self.whole):
                net.head = self._made_head(phase, k).to(self.device)
        self.left[phase.name] = [(net.head, make_optimizer(net, phase)) for net in self.whole]

    def _made_head(self, phase: Phase, k: int) -> nn.Module:
        """A new head of net k, with the projection that the phase asks for."""
        head = self.new_head(self.splits["train"].features.plain, k)  # type: ignore[attr-defined]
        if phase.mlp is not None:
            head = self._reshaped(head, phase.mlp, k)
        return ProjectedHead(head, phase.projection_dim, self.seed + k) if phase.projection_dim else head

    def _reshaped(self, head: Any, mlp: MLPHeadConfig, k: int) -> nn.Module:
        """A head with an MLP in the place of a linear one of net k, of the same sizes and standardization."""
        sizes, rng = head.settings(), torch.Generator().manual_seed(self.seed + k)
        scale = (head.mean, head.std)
        return MLPHead(sizes["width"], sizes["classes"], mlp, standardize=scale, generator=rng)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs: tensors by name, and the counters."""
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()} | self._learned()
        for name, candidate in self.candidates.items():
            tensors |= {f"candidate.{name}.{key}": value for key, value in candidate.items()}
        for name, pairs in self.left.items():
            for k, (head, optimizer) in enumerate(pairs):
                tensors |= {f"left.{name}.{k}.head.{key}": value for key, value in head.state_dict().items()}
                for i, slots in optimizer.state_dict()["state"].items():
                    tensors |= {f"left.{name}.{k}.slot.{i}.{s}": whole(torch.as_tensor(v)) for s, v in slots.items()}
        for name, ledger in (("ledger", self.ledger), ("validation", self.validation_ledger)):
            tensors |= {f"{name}.{column}": value for column, value in ledger.state_dict().items()}
        counters = {
            "cost": asdict(self.cost),
            "touched": self.backbone_changed,
            "stale": self.features_stale,
            "wall": self.wall,
        }
        return tensors, counters | {"heads": self.heads}

    def resume(self, entered: list[Phase], tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Args:
            entered: The phases that were entered before it was saved, the current one last.
            tensors: From `state`.
            counters: From `state`.
        """
        self.backbone_changed = bool(counters["touched"])
        self._learn_from(tensors)
        for phase in entered:
            self.phase = phase
            self._equip(phase)
        if entered[-1].scope == "head" and self.backbone_changed:
            self._refresh()
        self.features_stale = bool(counters["stale"])
        for name, pairs in self.left.items():
            for k, (head, optimizer) in enumerate(pairs):
                head.load_state_dict(below(tensors, f"left.{name}.{k}.head."))
                slots: dict[int, dict[str, Tensor]] = {}
                for key, value in below(tensors, f"left.{name}.{k}.slot.").items():
                    i, slot = key.split(".", 1)
                    slots.setdefault(int(i), {})[slot] = value
                optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
                match_memory_format(optimizer)
        for key, value in below(tensors, "candidate.").items():
            name, rest = key.split(".", 1)
            self.candidates.setdefault(name, {})[rest] = value
        self.heads = dict(counters["heads"])
        self.ledger.load_state_dict(below(tensors, "ledger."))
        self.validation_ledger.load_state_dict(below(tensors, "validation."))
        self.rng.set_state(tensors["rng"])
        self.cost = Cost(**counters["cost"])
        self.started -= counters["wall"]

    def keep(self, name: str) -> None:
        """Keep a copy of what the nets have learned as a candidate for delivery."""
        learned = self._learned()
        for k, net in enumerate(self.whole):
            learned |= {f"head.{k}.{key}": value for key, value in unwrap_head(net.head).state_dict().items()}
        self.candidates[name] = {key: value.detach().cpu().clone() for key, value in learned.items()}
        self.heads[name] = [head_to_config(net.head) for net in self.whole]

    def candidate_head(self, name: str, k: int) -> nn.Module:
        """The head of net k of a candidate."""
        head = head_from_config(self.heads[name][k])
        head.load_state_dict(below(self.candidates[name], f"head.{k}."))
        return head

    def deliver(self, fresh: list[Net], candidate: str) -> None:
        """Take the nets of a candidate in the place of the last ones.

        Args:
            fresh: Nets as they were before the first phase.
            candidate: A name that `keep` was given.
        """
        self.looks = {}
        tensors = self.candidates[candidate]
        self.backbone_changed = self.features_stale = any(name.startswith("backbone.") for name in tensors)
        self.whole = [net.to(self.device) for net in fresh]
        if self.backbone_changed:
            self._learn_from(tensors)
        self.splits = dict(self.pretrained)
        for k, net in enumerate(self.whole):
            net.head = self.candidate_head(candidate, k).to(self.device)
        assert self.phase is not None
        self.phase = replace(self.phase, scope="all" if self.backbone_changed else "head")

    def _learned(self) -> dict[str, Tensor]:
        """The backbones, once a step has touched them."""
        if not self.backbone_changed:
            return {}
        states = [net.backbone.state_dict() if net.backbone is not None else {} for net in self.whole]
        return {f"backbone.{k}.{name}": whole(value) for k, state in enumerate(states) for name, value in state.items()}

    def gather_models(self, fresh: Callable[[], list[Net]]) -> None:
        """Put nets that are whole in the place of those that are divided among ranks.

        Args:
            fresh: Makes nets as they were before the first phase.
        """
        if not self.sharded:
            return
        tensors = self._learned()
        nets = fresh()
        for net, old in zip(nets, self.whole, strict=True):
            net.head = old.head
        self.whole = [net.to(self.device) for net in nets]
        self._learn_from(tensors)

    def _learn_from(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `_learned`."""
        for k, net in enumerate(self.whole):
            if net.backbone is not None and (state := below(tensors, f"backbone.{k}.")):
                net.backbone.load_state_dict(state)

    @property
    def _scope(self) -> str:
        return "head" if self.phase is None else self.phase.scope

    def _source(self, split: str) -> BatchSource:
        data = self.splits[split]
        if self._scope == "head":
            return data.features
        assert data.samples is not None
        return data.samples

    @contextmanager
    def _spending(self, account: str) -> Iterator[None]:
        """Book the forward_passes that pass through the backbones inside on an account of the cost."""
        before = sum(net.looked + 3 * net.trained for net in self.whole)
        yield
        after = sum(net.looked + 3 * net.trained for net in self.whole)
        setattr(self.cost, account, getattr(self.cost, account) + after - before)

    def _refresh(self) -> None:
        """New features of all splits from the backbone as it is now."""
        for split, features in self._remade(*self.splits).items():
            self.splits[split] = replace(self.splits[split], features=FeatureBatches(features))
        self.features_stale = False

    def _remade(self, *splits: str) -> dict[str, Tensor]:
        """Features of these splits from the backbone as it is now."""
        net, network, out = self.whole[0], None, {}
        assert len(self.whole) == 1, "heads of several nets cannot share features once their backbones differ"
        net.eval()
        for split in splits:
            samples = self.splits[split].samples
            assert samples is not None
            name, account = (
                ("score", "forward_passes") if split == "train" else ("evaluate", "evaluation_forward_passes")
            )
            with self.cost.timed(name), self._spending(account):
                if net.inference.name == "openvino" and net.backbone is not None and not self.sharded:
                    assert isinstance(samples, SampleBatches)
                    network = network or self._compile(net, samples)
                    out[split] = self._streamed(network, net, samples)
                else:
                    out[split] = self._pass_over(samples, lambda _, x: net.features(x))
        return out

    @staticmethod
    def _compile(net: Net, samples: SampleBatches) -> OpenVINOEncoder:
        """The tuned backbone as OpenVINO computes it: where that paid for the first features, it pays again."""
        assert net.backbone is not None
        first = raw_inputs(samples.prepared, torch.arange(min(2, len(samples))))
        return OpenVINOEncoder(net.backbone, first, net.inference.precision.dtype, net.inference.num_streams)

    def _streamed(self, network: OpenVINOEncoder, net: Net, samples: SampleBatches) -> Tensor:
        """Features of all samples by the compiled backbone, in the order of the rows."""
        batches = split_batches(samples.order(), samples.look)
        own = self.ranks.mine(batches)

        def found() -> Iterator[Tensor]:
            for some in (own[k : k + 16] for k in range(0, len(own), 16)):  # what is computed at a time stays in memory
                yield from (f for _, f in network.stream(samples.raw_batches(some)))

        with self._looking_together(batches):
            rows = _joined(found(), sum(map(len, own)))
            net.looked += sum(map(len, own))
        return self._in_order(batches, rows)

    def _pass_over(self, source: BatchSource, fn: Callable[[Tensor, Inputs], Tensor]) -> Tensor:
        """`fn(index, x)` of all samples of a source in the plain view, in the order of the rows."""
        batches = split_batches(source.order(), source.look)
        own = self.ranks.mine(batches)
        with torch.no_grad(), self._looking_together(batches):
            items = source.batches(own, ("plain",), 0, prefetch=self.device.type == "cuda")
            found = (fn(index, to_device(xs[0], self.device)).cpu() for index, xs in items)
            rows = _joined(found, sum(map(len, own)))
        return self._in_order(batches, rows)

    def _in_order(self, batches: list[Tensor], own: Tensor) -> Tensor:
        """What the ranks found in their batches, by row."""
        count = self.ranks.count
        found = self.ranks.all_gather(own, [sum(map(len, batches[r::count])) for r in range(count)])
        order = torch.cat([batch for r in range(count) for batch in batches[r::count]])
        if torch.equal(order, torch.arange(len(order))):
            return found
        values = torch.empty_like(found)
        values[order] = found
        return values

    @contextmanager
    def _looking_together(self, batches: list[Tensor]) -> Iterator[None]:
        """Count the forward_passes of all ranks, where this one makes a part of them."""
        before = [net.looked for net in self.whole]
        yield
        if self.ranks.count > 1:
            own, total = (sum(map(len, part)) for part in (self.ranks.mine(batches), batches))
            for net, looked in zip(self.whole, before, strict=True):
                net.looked = looked + (net.looked - looked) * total // own


def _joined(found: Iterator[Shaped[Tensor, "n ..."]], count: int) -> Shaped[Tensor, "N ..."]:
    """So many rows one behind the other, each in its place as it comes: joined at the end, they would be held twice."""
    out, start = torch.empty(0), 0
    for rows in found:
        if not start:
            out = rows.new_empty((count, *rows.shape[1:]))
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments the memory layout of their parameters.

    A file gives contiguous tensors, but fused AdamW reads memory as it lies: beside channels-last weights the moments
    would belong to other weights.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = like(parameter, value)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def split_batches(order: Int[Tensor, " N"], size: int, least: int = 2) -> list[Tensor]:
    """The order in batches; a last batch of fewer than `least` samples joins the one before it.

    BatchNorm cannot train on a single one.
    """
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def min_batch_size(size: int) -> int:
    """Samples of a step at the least, an eighth of a batch: two that are left over would move the nets as far as 80."""
    return max(2, size // 8)
