"""What a method will cost before it runs, in forward_passes, by its own epochs in rehearsal; `speed` makes seconds of it.

The rehearsal is the loop itself with nets that only pass features through. It enters every phase, looks at made-up
samples of which a known share is labeled wrongly, and of each pass over a plan computes one batch, which stands for
the others. So every method has a cost model without stating one, and it is as exact as its selection is foreseen.

Unit: F of spec section 6, one evaluation forward of one sample; a sample trained on costs 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.methods.protocol import Inputs, MLPHeadConfig, Phase, Selection, View
from cleantune.training.batches import BatchSource, FeatureBatches
from cleantune.training.checkpoint import SplitData, min_batch_size
from cleantune.training.epochs import remember
from cleantune.training.models import LinearHead, Net
from cleantune.training.trainer import Stepping, Trainer

ROWS = 1000
"""Samples of a rehearsal at the least, where there are as many."""
ROWS_A_CLASS = 12
"""As many that every class can have a mixture fitted."""
MARGIN = 4.0
"""By so many nats the made-up scores of the true class lead: a problem that pre-trained features can solve."""


@dataclass(frozen=True)
class Workload:
    """How much there is."""

    train: int
    validation: int
    test: int
    classes: int

    @property
    def all(self) -> int:
        """Samples of all splits."""
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class CostEstimate:
    """What a method costs; samples of two nets, and views, count each for itself."""

    extracted: float
    """Training samples, and cached views of them, whose features are made once."""
    looked: float
    """Samples through the backbone without a gradient."""
    trained: float
    """Samples through the backbone with one."""
    cached: float
    """Samples that cached features stood for, in looks and in steps: forward_passes, had nothing been cached."""
    training_samples: float
    optimizer_steps: float
    evaluated: float
    """Looks at validation and test, and the last look at everything; an upper bound."""

    @property
    def forward_passes(self) -> float:
        """With features cached, as `cost.forward_passes` of a run counts."""
        return self.extracted + self.looked + 3 * self.trained

    @property
    def forward_passes_uncached(self) -> float:
        """Had every sample to pass through the frozen backbone each time (spec 6, the other accounting)."""
        return self.cached + self.looked + 3 * self.trained


def estimate_cost(
    todo: Sequence[Phase], sizes: Workload, wrong: float = 0.0, views: int = 0, rows: int | None = None
) -> CostEstimate:
    """What phases will cost.

    Args:
        todo: Phases as `train.phases` gives them.
        sizes: Of the data.
        wrong: Share of the labels that are wrong, as far as it is foreseen; it decides what is selected.
        views: How many augmented views of each training sample are cached for the method (`augmented.views_to_cache`).
        rows: Samples in the rehearsal; left out: as many as every class needs.
    """
    count = min(sizes.train, rows or max(ROWS, ROWS_A_CLASS * sizes.classes))
    with torch.random.fork_rng(devices=[]):
        run = DryRun(sizes, wrong, count, todo[0].num_nets)
        for phase in todo:
            run.rehearse(phase)
    own = sizes.train * (any(phase.scope == "head" for phase in todo) + views)
    looked, trained = sum(net.looked for net in run.whole), sum(net.trained for net in run.whole)
    return CostEstimate(
        own, looked, trained, run.cached, run.cost.training_samples, run.cost.optimizer_steps, run.evaluated()
    )


class DryRun(Trainer):
    """A run on made-up features that are their own scores; a batch stands for its pass, a sample for many."""

    def __init__(self, sizes: Workload, wrong: float, count: int, nets: int) -> None:
        """A run of `count` samples that stands for one of `sizes.train`."""
        rng = torch.Generator().manual_seed(0)
        y_true = torch.arange(count)[torch.randperm(count, generator=rng)] % sizes.classes
        flipped = torch.rand(count, generator=rng) < wrong
        other = torch.randint(1, max(2, sizes.classes), (count,), generator=rng)
        y = torch.where(flipped, (y_true + other) % sizes.classes, y_true)
        scores = torch.randn(count, sizes.classes, generator=rng)
        scores[torch.arange(count), y_true] += MARGIN
        source = FeatureBatches(scores)
        split = SplitData(y, source, source)
        super().__init__(
            [Net(_Through(), _Scores(sizes.classes)) for _ in range(nets)],  # type: ignore[arg-type]
            {"train": split},
            sizes.classes,
            0,
            lambda features, k: _Scores(sizes.classes),
        )
        self.sizes = sizes
        self.scale = sizes.train / count
        self.cached = 0.0
        self.epochs_of_all = self.refreshes = 0

    def rehearse(self, phase: Phase) -> None:
        """A phase, epoch by epoch."""
        self.refreshes += phase.scope == "head" and self.features_stale
        self.enter(phase)
        for epoch in range(phase.stage.epochs):
            self.epoch, self.row = epoch, {}
            phase.epoch(self)
            remember(self)
        self.epochs_of_all += phase.stage.epochs if phase.scope == "all" else 0

    def evaluated(self) -> float:
        """Looks at validation and test after epochs of fine-tuning and for later probes; at last, at what is left."""
        held_out = self.sizes.validation + self.sizes.test
        last = self.sizes.train if self.epochs_of_all and self._scope == "all" else 0
        return len(self.whole) * (held_out * (self.epochs_of_all + self.refreshes) + last)

    def p_wrong(self, class_balance: float = 0.0, flip_concentration_threshold: float = 1.0) -> Float[Tensor, " N"]:
        """What the made-up scores leave for other classes; it costs a look where the backbone has changed."""
        if self.features_stale:
            self._remade("train")
        scores: Tensor = self.splits["train"].features.plain  # type: ignore[attr-defined]
        return 1 - scores.softmax(1).gather(1, self.y[:, None])[:, 0]

    def probabilities(self, split: str) -> Float[Tensor, "N C"]:
        """As the loop's, and free."""
        counts = [(net.looked, net.trained) for net in self.whole], self.cached
        p = super().probabilities(split)
        for net, (looked, trained) in zip(self.whole, counts[0], strict=True):
            net.looked, net.trained = looked, trained
        self.cached = counts[1]
        return p

    def _reshaped(self, head: Any, mlp: MLPHeadConfig, k: int) -> nn.Module:
        """The head as it is: made-up scores need no MLP, and cost none."""
        made: nn.Module = head
        return made

    def _least_passes(self, samples: int) -> float:
        return super()._least_passes(max(1, round(samples * self.scale)))

    def _one_pass(
        self, stepping: Stepping, selection: Selection, views: tuple[View, ...], done: int, passes: float
    ) -> None:
        """One batch, counted as often as the pass has samples for."""
        assert self.phase is not None
        modules, optimizers, loss = stepping
        part, size = min(1.0, passes - done), self.phase.stage.batch_size
        order = self._draw(selection)
        order = order[: max(1, round(part * len(order)))]
        whole = max(1, round(part * round(int(selection.mask.sum()) * self.scale)))
        batches = [order[:size]]
        batch = next(self._batches(batches, self._rest(selection, batches), selection, views))
        self.progress = self.epoch + done / passes
        with self._counted(modules[0], whole / len(batch.indices)), torch.enable_grad():
            made = loss(*modules, batch)
        steps = -(-whole // size) - (whole > size and 0 < whole % size < min_batch_size(size))
        self.cost.training_samples += whole
        self.cost.optimizer_steps += steps * len(optimizers)
        if self._scope == "all":
            self.backbone_changed = self.features_stale = True
        total = made if isinstance(made, Tensor) else made.total
        self.row |= {"loss": float(total.detach()), "learning_rate": 0.0}

    def _pass_over(self, source: BatchSource, fn: Callable[[Tensor, Inputs], Tensor]) -> Tensor:
        with self._counted(self.whole[0], self.scale):
            return super()._pass_over(source, fn)

    def _counted(self, module: nn.Module, times: float) -> _Counted:
        return _Counted(self, module, times)


class _Counted:
    """Count what happens inside so many times; cached features are counted by one head, as nets share a backbone."""

    def __init__(self, run: DryRun, module: nn.Module, times: float) -> None:
        self.run, self.times = run, times
        self.net = next((net for net in run.whole if module is net or module is net.head), run.whole[0])

    def __enter__(self) -> None:
        self.before = [(net.looked, net.trained) for net in self.run.whole]
        self.rows = _scores_of(self.net).rows

    def __exit__(self, *_: object) -> None:
        through = 0
        for net, (looked, trained) in zip(self.run.whole, self.before, strict=True):
            through += net.looked - looked + net.trained - trained
            net.looked = looked + round((net.looked - looked) * self.times)
            net.trained = trained + round((net.trained - trained) * self.times)
        if not through:
            self.run.cached += (_scores_of(self.net).rows - self.rows) * self.times


def _scores_of(net: Net) -> _Scores:
    head: Any = net.head
    return head if isinstance(head, _Scores) else head.head


class _Scores(LinearHead):
    """A head whose scores are the features, and which counts them."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes, init="zeros")
        self.rows = 0
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(classes))

    def forward(self, f: Tensor) -> Any:
        """Scores, twice the features."""
        self.rows += len(f)
        return super().forward(f)


class _Through(nn.Module):
    """A backbone that passes features through, with one weight so that it can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        return x * self.one
