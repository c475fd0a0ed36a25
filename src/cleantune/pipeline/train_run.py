"""Training of a run, from its inputs to the selected model."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from cleantune.config.run import Config
from cleantune.methods import METHODS
from cleantune.methods.protocol import Method, Phase
from cleantune.pipeline.cached_views import cached_views, views_to_cache
from cleantune.pipeline.finished_run import Baseline, FinishedRun
from cleantune.pipeline.inputs import HeadFactory, RunInputs
from cleantune.pipeline.model_selection import select_model
from cleantune.storage.run_dir import RunDir
from cleantune.training.cost import Cost
from cleantune.training.epochs import phases as phases_of
from cleantune.training.epochs import train
from cleantune.training.evaluator import Evaluator
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer
from cleantune.utils.console import Console


def train_and_select(
    config: Config,
    inputs: RunInputs,
    phases: tuple[Phase, ...],
    run_dir: RunDir,
    console: Console,
    noise: dict[str, Any] | None,
    start: float,
    baseline: Baseline | None = None,
) -> FinishedRun:
    """Train epoch by epoch, resuming from the folder's checkpoint if there is one, and select the model to keep.

    Args:
        config: Configuration of the run.
        inputs: Inputs of the run.
        phases: Phases of its method.
        run_dir: Folder for metrics and checkpoints.
        console: Console for messages and the table of epochs.
        noise: Measurements of the injected noise.
        start: Time when the run began, by `time.perf_counter`.
        baseline: Measured baseline; None: it is trained here.
    """
    seed, evaluator = config.run.train_seed, Evaluator(inputs.data, config.run.test_every_epoch)
    heads = HeadFactory(inputs.num_classes, config.model.head_init, seed)
    baseline = baseline or train_baseline_probe(inputs, heads)
    count = phases[0].num_nets
    if count > 1 and phases[0].scope == "head":  # heads that begin alike would stay alike
        heads = HeadFactory(inputs.num_classes, "normal", seed)
    make_models = partial(inputs.make_models, count, heads)
    trainer = Trainer(
        make_models(),
        inputs.splits(cached_views(inputs, phases, config, console)),
        inputs.num_classes,
        seed,
        heads,
        inputs.device,
        inputs.group,
        is_sharded=config.run.sharding == "fsdp",
        cost=extraction_cost(inputs, phases, len(views_to_cache(phases, config.run.cached_augmentations))),
        start_time=start,
    )
    earlier = inputs.group.on_main(run_dir.truncate_metrics)
    evaluator.restore(earlier)
    for row in earlier:
        console.row(row)
    for row in train(phases, trainer, evaluator, run_dir, config.run.model_selection):
        console.row(row)
        for warning in row.get("warnings", ()):
            console.info(warning)
    selected = select_model(trainer, inputs, make_models, config.run, last_phase(phases))
    trainer.state.gather(make_models)
    console.info(f"selected model: {selected.reason}")
    return FinishedRun(config, inputs, trainer, run_dir.read_metrics(), selected, baseline, noise)


def last_phase(phases: tuple[Phase, ...]) -> str:
    """Return the phase that makes the last model: `tune` where there is one, since a later probe reads its backbone."""
    names = [phase.name for phase in phases]
    return "tune" if "tune" in names else names[-1]


def extraction_cost(inputs: RunInputs, phases: tuple[Phase, ...], views: int = 0) -> Cost:
    """Return the cost of extraction: a forward pass for every sample and for every cached view of it.

    It counts whether or not the cache had the features. Passes of the training split belong to the method where it has
    a phase on cached features, and to evaluation otherwise.
    """
    if inputs.backbone is None:
        return Cost()
    sizes = {split: len(rows) for split, rows in inputs.data.rows.items()}
    train = sizes["train"] if any(phase.scope == "head" for phase in phases) else 0
    return Cost(forward_passes=train + views * sizes["train"], evaluation_forward_passes=sum(sizes.values()) - train)


def train_baseline_probe(inputs: RunInputs, heads: HeadFactory) -> Baseline:
    """Train the baseline, a plain CE linear probe on the same features; it takes seconds."""
    start = time.perf_counter()
    method: Method = METHODS["ce"]()
    model = Model(None, heads(inputs.features["train"], 0))
    trainer = Trainer([model], inputs.splits(), inputs.num_classes, heads.seed, heads, inputs.device)
    for _ in train(phases_of(method, 0.0), trainer, lambda trainer: {}, record_probes=False):
        pass  # only the last epoch is measured
    row = Evaluator(inputs.data)(trainer)
    accuracy = {"test": row["accuracy_test"], "validation": row["accuracy_validation"]}
    return Baseline(accuracy, round(time.perf_counter() - start, 3))
