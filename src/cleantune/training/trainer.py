"""The training loop: the state of a run, and the only `backward()` of the package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.label_quality.posterior import fit_loo_probe
from cleantune.label_quality.scores import label_error_probability
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import LossOutput, Phase, ProbeStatistics, Selection, View
from cleantune.training.batches import BatchSource, SplitData
from cleantune.training.candidates import CandidateModels
from cleantune.training.cost import Cost
from cleantune.training.heads import MLPHead, unwrap_head
from cleantune.training.loss_log import LossLog
from cleantune.training.model_state import ModelState
from cleantune.training.models import Model
from cleantune.training.optim import lr_factor, set_learning_rates
from cleantune.training.predictor import Predictor
from cleantune.training.probe_statistics import ProbeRecorder
from cleantune.training.sampling import draw_batches, draw_unlabeled, load_batches, min_passes, view_kinds
from cleantune.utils.random import seeded

LossFunction = Callable[..., Tensor | LossOutput]
"""Function from the modules that learn and a batch to a loss."""


class Trainer:
    """Models, optimizers, per-sample memory and the generator of a run; implements `methods.protocol.Run`.

    Attributes:
        state: The models, with their heads and optimizers by phase.
        y: Given labels of the training split [N].
        ledger: Per-sample memory of the method.
        rng: The only generator of the run.
        predictor: Evaluation passes, and the current splits.
        probe: Statistics of the last probe.
        cost: Counters of what the run has spent.
        phase: The current phase.
        epoch: Epoch of the phase, from 0.
        progress: Epoch with the fraction of it that is done.
        selection: The last selection that was trained on.
        last_selected: Training samples [N] that the last selection of a method kept; None before there was one.
        label_probabilities: Class probabilities [N, C] by split behind the last call of `p_wrong`.
        metrics: Loss, learning rate and warnings of the current epoch.
    """

    def __init__(
        self,
        models: Sequence[Model],
        splits: Mapping[str, SplitData],
        classes: int,
        seed: int,
        new_head: Callable[[Any, int], nn.Module],
        device: str = "cpu",
        process_group: ProcessGroup = SINGLE_PROCESS,
        *,
        is_sharded: bool = False,
        sample_weight: Float[Tensor, " N"] | None = None,
        cost: Cost | None = None,
        start_time: float | None = None,
    ) -> None:
        """Create a run before its first phase.

        Args:
            models: One model, or two for methods with a peer.
            splits: `train`, and `validation`, `test` and `unlabeled` where they exist.
            classes: Number of classes C.
            seed: Seed of the generator.
            new_head: Function from features [N, D] and the number of the model to a new head.
            device: Device of the models; labels, ledger and generator stay on the CPU.
            process_group: Processes that share the run; each calls every method.
            is_sharded: Divide backbones that are trained among the processes (FSDP).
            sample_weight: Weights [N] by which those of every selection are multiplied.
            cost: What was spent before training, such as on the extraction of features.
            start_time: Start of the run by `time.perf_counter()`; the default is now.
        """
        self.device = torch.device(device)
        self.process_group = process_group
        self.state = ModelState(models, new_head, seed, self.device, process_group, is_sharded=is_sharded)
        self.y = splits["train"].y
        self.classes = classes
        self.rng = torch.Generator().manual_seed(seed)
        self.ledger = Ledger(len(self.y))
        self.cost = cost or Cost()
        self.predictor = Predictor(splits, self.device, self.cost, process_group, is_sharded=is_sharded)
        self.probe = ProbeRecorder()
        self.last_selected: Tensor | None = None
        self.label_probabilities: dict[str, Tensor] = {}
        self.phase: Phase | None = None
        self.epoch = 0
        self.progress = 0.0
        self.selection: Selection | None = None
        self.metrics: dict[str, Any] = {}
        self._sample_weight = sample_weight
        self._start_time = time.perf_counter() if start_time is None else start_time

    # -- what a method uses ------------------------------------------------------------------------------------------

    @property
    def splits(self) -> Mapping[str, SplitData]:
        """Return the splits with their current features."""
        return self.predictor.splits

    @property
    def models(self) -> list[Model]:
        """Return the models of the run."""
        return self.state.models

    @property
    def candidates(self) -> CandidateModels:
        """Return the models of earlier epochs, for model selection."""
        return self.state.candidates

    @property
    def backbone_changed(self) -> bool:
        """Return True once the backbones differ from the pre-trained ones."""
        return self.state.backbone_changed

    @property
    def nets(self) -> list[nn.Module]:
        """Return the modules that learn in this phase: heads on cached features, or whole models on samples."""
        return list(self.models) if self._trains_backbone else [model.head for model in self.models]

    @property
    def net(self) -> nn.Module:
        """Return the only module of a method that trains one."""
        return self.nets[0]

    @property
    def probe_statistics(self) -> ProbeStatistics | None:
        """Return the training losses and probabilities of the last probe; None where there was none."""
        return self.probe.statistics

    def score(self, fn: Callable[..., Tensor], *nets: nn.Module) -> Tensor:
        """Return `fn(y, *logits)` of every training sample in the plain view, without gradients: [N, ...].

        Until the backbone is first updated, cached features are used: the same numbers at no cost.
        """
        with self.cost.track("score", "forward_passes", self.models):
            return self.predictor.evaluate("train", fn, nets)

    def p_wrong(self, class_balance: float, flip_concentration_threshold: float) -> Float[Tensor, " N"]:
        """Return the probability that each given label is wrong, from the features of the current backbone: [N].

        The run lists labels by the class probabilities behind it, `label_probabilities`.
        """
        splits = [split for split in ("train", "validation") if split in self.splits]
        features = self.predictor.features(splits, self.models[0])
        with self.cost.track("score"):
            probe = fit_loo_probe(features["train"], self.y, self.classes, class_balance, flip_concentration_threshold)
            p = {split: probe.probabilities(features[split]) for split in splits[1:]}
            self.label_probabilities = p | {"train": probe.loo_probabilities()}
            return label_error_probability(self.label_probabilities["train"], self.y, flip_concentration_threshold)

    def learn(
        self, nets: nn.Module | list[nn.Module], loss: LossFunction, selection: Selection | None = None, *,
        weak: int = 1, strong: int = 0, passes: float = 1.0,
    ) -> None:  # fmt: skip
        """Train on a selection of the samples; see `methods.protocol.Run`.

        Raises:
            UserError: The selection is empty, or the loss is not finite.
        """
        assert self.phase is not None
        modules = nets if isinstance(nets, list) else [nets]
        optimizers = [self.state.phase_heads[self.phase.name][self.nets.index(module)][1] for module in modules]
        selection = self._select(selection)
        views = view_kinds(weak, strong)
        passes = max(passes, min_passes(self.phase.stage, int(selection.mask.sum())))
        section = "tune" if self._trains_backbone else "probe"
        with ExitStack() as stack:
            stack.enter_context(self.cost.track(section, "forward_passes", self.models))
            for model in self.models:
                stack.enter_context(model.sharded_batches(self.process_group))
            for module in modules:
                module.train()
            for done in range(math.ceil(passes)):
                self._train_pass(modules, optimizers, loss, selection, views, done, passes)
        self.state.backbone_changed |= self._trains_backbone
        self.predictor.weights_changed(backbone=self._trains_backbone)

    def _train_pass(
        self, modules: list[nn.Module], optimizers: list[torch.optim.Optimizer], loss_fn: LossFunction,
        selection: Selection, views: tuple[View, ...], done: int, passes: float,
    ) -> None:  # fmt: skip
        """Train for one pass over the selection, or for the fraction of the last one.

        Args:
            modules: Modules that learn, with their optimizers.
            optimizers: One per module.
            loss_fn: Function from the modules and a batch to a loss.
            selection: Samples to learn from.
            views: Views of each sample.
            done: Passes of this epoch that are done, of `passes`.
            passes: Passes of this epoch.
        """
        assert self.phase is not None
        fraction = min(1.0, passes - done)
        smallest = 1 if self.phase.mlp is None else 2  # an MLP head may contain a BatchNorm
        batches = draw_batches(selection, fraction, self.phase.stage.batch_size, smallest, self.rng)
        unlabeled = draw_unlabeled(selection, batches, self.rng)
        seed = int(torch.randint(2**62, (), generator=self.rng))
        self._seed_heads(seed)
        log = LossLog(list(map(len, batches)), self.device)
        loader = load_batches(self._source, self.y, selection, batches, unlabeled, views, seed, self.device)
        with seeded(seed + self.process_group.rank, self.device):
            for step, batch in enumerate(loader):
                self._schedule(optimizers, (done + fraction * step / len(batches)) / passes)
                loss = loss_fn(*modules, batch)
                loss = loss if isinstance(loss, LossOutput) else LossOutput(loss, {})
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.total.backward()  # type: ignore[no-untyped-call]
                self._all_reduce_gradients(modules)
                for optimizer in optimizers:
                    optimizer.step()
                log.record(step, loss)
        self.cost.training_samples += log.num_samples
        self.cost.optimizer_steps += len(optimizers) * len(batches)
        self._report(log, optimizers[0])

    def _select(self, selection: Selection | None) -> Selection:
        """Remember the selection of this epoch, with the weights of the samples.

        Raises:
            UserError: It is empty.
        """
        assert self.phase is not None
        self.metrics["selected"] = None if selection is None else int(selection.mask.sum())
        self.last_selected = self.last_selected if selection is None else selection.mask.clone()
        selection = selection or Selection.of(torch.ones(len(self.y), dtype=torch.bool))
        if self._sample_weight is not None:
            selection = replace(selection, weight=selection.weight * self._sample_weight)
        if not selection.mask.any():
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: none of {len(self.y)} samples is selected;"
                " lower method.tau or use more data"
            )
        self.selection = selection
        return selection

    def _seed_heads(self, seed: int) -> None:
        """Seed dropout in the heads, which must be the same in all processes."""
        for k, model in enumerate(self.models):
            head = unwrap_head(model.head)
            if isinstance(head, MLPHead):
                head.seed_dropout(seed + k)

    def _schedule(self, optimizers: list[torch.optim.Optimizer], position: float) -> None:
        """Set progress and learning rates at a position 0..1 of the epoch."""
        assert self.phase is not None
        self.progress = self.epoch + position
        start, end = self.phase.schedule_span
        stage = self.phase.stage
        factor = lr_factor(stage, start + (end - start) * self.progress / stage.epochs)
        for optimizer in optimizers:
            set_learning_rates(optimizer, factor)

    def _all_reduce_gradients(self, modules: list[nn.Module]) -> None:
        """Sum the gradients of backbones over processes; those of heads are those of the whole batch already."""
        for module in modules:
            if isinstance(module, Model) and module.backbone is not None:
                self.process_group.all_reduce_gradients(module.backbone.parameters())

    def _report(self, log: LossLog, optimizer: torch.optim.Optimizer) -> None:
        """Add mean losses, warnings and the learning rate of a pass to the metrics.

        Raises:
            UserError: The loss is not finite.
        """
        assert self.phase is not None
        means = log.means()
        if not math.isfinite(means["loss"]):
            name, stage = self.phase.name, self.phase.stage
            backbone = f" or backbone_learning_rate ({stage.backbone_learning_rate:g})" if self._trains_backbone else ""
            raise UserError(
                f"phase {name}, epoch {self.epoch}: the loss is not finite;"
                f" lower method.{name}.learning_rate ({stage.learning_rate:g}){backbone}"
            )
        self.metrics |= means | {"learning_rate": optimizer.param_groups[0]["lr"]}
        if log.warnings:
            self.metrics["warnings"] = list(dict.fromkeys([*self.metrics.get("warnings", []), *log.warnings]))

    # -- phases and epochs -------------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        """Begin a phase: update stale features where heads learn, and set up heads and optimizers.

        Raises:
            UserError: The phase trains a backbone and there is none.
        """
        assert phase.num_nets == len(self.models), f"phase {phase.name} needs {phase.num_nets} models"
        if phase.scope == "all" and self.splits["train"].samples is None:
            raise UserError('these data are features without a backbone: only --scope head (method.scope="head") works')
        if phase.scope == "head":
            self.predictor.refresh_features(self.models)
        self.set_up(phase)

    def set_up(self, phase: Phase) -> None:
        """Set up heads and optimizers of a phase; `begin_phase` updates the features first."""
        self.phase = phase
        self.state.set_up(phase, self.splits["train"].features.plain)
        self.predictor.weights_changed(backbone=False)

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch of the phase, with empty metrics."""
        self.epoch, self.metrics = epoch, {}

    def record_probe(self) -> None:
        """Add the epoch to the probe statistics, if it trained heads on all samples.

        Phases that train on a selected subset are excluded, since the selection biases the losses.
        """
        assert self.phase is not None
        if self._trains_backbone or self.selection is None or not bool(self.selection.mask.all()):
            return
        if self.epoch == 0:
            self.probe.begin()
        is_late = self.epoch >= self.phase.stage.epochs // 2
        self.probe.record(self.probabilities("train"), self.y, is_late=is_late)

    def probabilities(self, split: str) -> Float[Tensor, "N C"]:
        """Return the class probabilities of a split, averaged over the models; counted as evaluation."""
        return self.predictor.probabilities(split, self.models)

    def check_processes_agree(self) -> None:
        """Check that heads, ledger and generator are identical in all processes.

        Raises:
            UserError: They differ.
        """
        assert self.phase is not None
        heads = [value for model in self.models for value in model.head.state_dict().values()]
        if not self.process_group.is_identical([self.rng.get_state(), *heads, *self.ledger.state_dict().values()]):
            raise UserError(
                f"phase {self.phase.name}, epoch {self.epoch}: the processes have computed different numbers;"
                " run them on machines with the same processor, GPU and versions of the libraries"
            )

    def load_backbone_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of the backbones of a checkpoint; an empty state leaves them as they are."""
        self.state.load_backbone_state(state)
        self.predictor.weights_changed(backbone=bool(state))

    def load_candidate(self, name: str, models: Sequence[Model]) -> None:
        """Replace the models by a candidate.

        Args:
            name: Name of the candidate.
            models: Models as they were before the first phase.
        """
        self.state.load_candidate(name, models)
        self.predictor.reset_features()
        self.predictor.weights_changed(backbone=self.backbone_changed)

    @property
    def elapsed_seconds(self) -> float:
        """Return the seconds since the run began, without interruptions."""
        return time.perf_counter() - self._start_time

    def add_elapsed_seconds(self, seconds: float) -> None:
        """Count the seconds before an interruption."""
        self._start_time -= seconds

    @property
    def _trains_backbone(self) -> bool:
        return self.phase is not None and self.phase.scope == "all"

    @property
    def _source(self) -> BatchSource:
        """Return the training split as batches of samples or of cached features, whatever the phase trains on."""
        data = self.splits["train"]
        source = data.samples if self._trains_backbone else data.features
        assert source is not None
        return source
