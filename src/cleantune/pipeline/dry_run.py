"""A dry run of a method: its own epochs on synthetic scores, with forward passes counted instead of trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.label_quality.detectors import cross_entropy_per_sample
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Batch, LossOutput, Output, Phase, ProbeStatistics, Selection, View
from cleantune.training.batches import FeatureBatches
from cleantune.training.sampling import (
    draw_order,
    draw_unlabeled,
    load_batches,
    min_batch_size,
    min_passes,
    view_kinds,
)

MARGIN = 4.0
"""Nats by which the synthetic scores of the true class lead: a problem that pre-trained features can solve."""


class ScoreModel(nn.Module):
    """A model whose scores are its input, and which counts its samples."""

    def __init__(self) -> None:
        """Begin with counts of zero."""
        super().__init__()
        self.num_evaluated = 0.0
        self.num_trained = 0.0

    def forward(self, x: Tensor) -> Output:
        """Return the input as scores and features, and count its rows."""
        if torch.is_grad_enabled():
            self.num_trained += len(x)
        else:
            self.num_evaluated += len(x)
        return Output(x, x, x)

    def project(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        """Return the input as its projection."""
        return z


class DryRun:
    """A run on synthetic scores that counts its cost; implements `methods.protocol.Run`.

    Of each pass over a selection one batch is computed, which stands for the others, and each synthetic sample stands
    for several real ones.

    Attributes:
        scores: Synthetic scores of the samples [N, C].
        y: Their labels [N].
        cached: Samples that cached features replaced, in evaluation and training.
        training_samples: Samples that were trained on.
        optimizer_steps: Steps of all optimizers.
        tune_epochs: Epochs of phases that train the backbone.
        feature_updates: Extractions of features from a tuned backbone.
    """

    def __init__(self, classes: int, num_samples: int, scale: float, noise_rate: float, num_models: int) -> None:
        """Draw the synthetic problem.

        Args:
            classes: Number of classes C.
            num_samples: Synthetic samples.
            scale: Real samples for which one synthetic sample stands.
            noise_rate: Fraction of wrong labels.
            num_models: Models of the method.
        """
        rng = torch.Generator().manual_seed(0)
        y_true = torch.arange(num_samples)[torch.randperm(num_samples, generator=rng)] % classes
        is_wrong = torch.rand(num_samples, generator=rng) < noise_rate
        offset = torch.randint(1, max(2, classes), (num_samples,), generator=rng)
        self.y = torch.where(is_wrong, (y_true + offset) % classes, y_true)
        self.scores = torch.randn(num_samples, classes, generator=rng)
        self.scores[torch.arange(num_samples), y_true] += MARGIN
        self._source = FeatureBatches(self.scores)
        self._scale = scale
        self._phase: Phase | None = None
        self._features_stale = False
        self.classes = classes
        self.ledger = Ledger(num_samples)
        self.rng = torch.Generator().manual_seed(0)
        self.epoch = 0
        self.progress = 0.0
        self.probe_statistics: ProbeStatistics | None = None
        self.models = [ScoreModel() for _ in range(num_models)]
        self.cached = self.training_samples = 0.0
        self.optimizer_steps = self.tune_epochs = self.feature_updates = self.label_passes = 0

    @property
    def nets(self) -> list[nn.Module]:
        """Return the models, which replace heads and whole models alike."""
        return list(self.models)

    @property
    def net(self) -> nn.Module:
        """Return the only model of a method that trains one."""
        return self.models[0]

    @property
    def num_evaluated(self) -> float:
        """Return the samples that passed through the backbones without gradients."""
        return sum(model.num_evaluated for model in self.models)

    @property
    def num_trained(self) -> float:
        """Return the samples that passed through the backbones with gradients."""
        return sum(model.num_trained for model in self.models)

    def run(self, phase: Phase) -> None:
        """Run all epochs of a phase."""
        self._phase = phase
        if phase.scope == "head" and self._features_stale:
            self.feature_updates += 1
            self._evaluate_features()
            self._features_stale = False
        for epoch in range(phase.stage.epochs):
            self.epoch = epoch
            phase.epoch(self)
            if phase.scope == "head":
                p = self.scores.softmax(1)
                loss = cross_entropy_per_sample(p, self.y)
                self.probe_statistics = ProbeStatistics(loss, loss, p)
        self.tune_epochs += phase.stage.epochs if phase.scope == "all" else 0

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """Return `fn(y, *scores)` of every synthetic sample; it costs a pass where the backbone has changed."""
        with self._count(self._scale, self.models[0], is_cached=not self._features_stale), torch.no_grad():
            return fn(self.y, *(net(self.scores).logits for net in nets))

    def p_wrong(self, class_balance: float, flip_concentration_threshold: float) -> Float[Tensor, " N"]:
        """Return the probability of all classes but the given one; it costs a pass where the backbone has changed."""
        if self._features_stale:
            self._evaluate_features()
            self.label_passes += 1
        return 1 - self.scores.softmax(1).gather(1, self.y[:, None])[:, 0]

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
        """Compute one batch of each pass, and count it as often as the pass has samples for."""
        assert self._phase is not None
        modules: list[nn.Module] = nets if isinstance(nets, list) else [nets]
        selection = selection or Selection.of(torch.ones(len(self.y), dtype=torch.bool))
        views = view_kinds(weak, strong)
        stage, trains_backbone = self._phase.stage, self._phase.scope == "all"
        total = round(int(selection.mask.sum()) * self._scale)
        passes = max(passes, min_passes(stage, max(1, total)))
        for done in range(math.ceil(passes)):
            self.progress = self.epoch + done / passes
            num_samples = max(1, round(min(1.0, passes - done) * total))
            order = draw_order(selection, self.rng)[: max(1, min(num_samples, stage.batch_size))]
            batch = self._batch(order, selection, views)
            with self._count(num_samples / len(order), modules[0], is_cached=not trains_backbone), torch.enable_grad():
                loss(*modules, batch)
            self.training_samples += num_samples
            self.optimizer_steps += len(modules) * num_steps(num_samples, stage.batch_size)
        self._features_stale |= trains_backbone

    def _batch(self, order: Tensor, selection: Selection, views: tuple[View, ...]) -> Batch:
        """Return a batch of these samples, with its unlabeled ones; views of samples are different tensors."""
        unlabeled, cpu = draw_unlabeled(selection, [order], self.rng), torch.device("cpu")
        batch = next(load_batches(self._source, self.y, selection, [order], unlabeled, views, 0, cpu))
        if self._phase is None or self._phase.scope == "head":
            return batch
        copied = batch._replace(views=tuple(x.clone() for x in batch.views))  # type: ignore[union-attr]
        if batch.unlabeled is None:
            return copied
        views_of_unlabeled = tuple(x.clone() for x in batch.unlabeled.views)  # type: ignore[union-attr]
        return copied._replace(unlabeled=batch.unlabeled._replace(views=views_of_unlabeled))

    def _evaluate_features(self) -> None:
        """Count the extraction of the features of all training samples."""
        self.models[0].num_evaluated += len(self.y) * self._scale

    @contextmanager
    def _count(self, times: float, model: nn.Module, *, is_cached: bool) -> Iterator[None]:
        """Count everything inside so many times.

        Args:
            times: Real samples for each synthetic one.
            model: Model whose samples count as cached ones: models share cached features.
            is_cached: Heads on cached features are computed, not backbones.
        """
        before = [(m.num_evaluated, m.num_trained) for m in self.models]
        yield
        for m, (evaluated, trained) in zip(self.models, before, strict=True):
            new_evaluated, new_trained = (m.num_evaluated - evaluated) * times, (m.num_trained - trained) * times
            if is_cached and m is model:
                self.cached += new_evaluated + new_trained
            m.num_evaluated = evaluated + (0.0 if is_cached else new_evaluated)
            m.num_trained = trained + (0.0 if is_cached else new_trained)


def num_steps(num_samples: int, batch_size: int) -> int:
    """Return the steps of a pass; a small last batch is merged into the one before it."""
    is_merged = num_samples > batch_size and 0 < num_samples % batch_size < min_batch_size(batch_size)
    return -(-num_samples // batch_size) - is_merged
