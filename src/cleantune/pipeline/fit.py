"""The main job: from data and a pre-trained model to a robust model, the list of wrong labels and a report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleantune.config.run import Config
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, init_distributed
from cleantune.errors import UserError
from cleantune.pipeline import artifacts
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.compute import stored_compute
from cleantune.pipeline.export import save_models
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.label_table import label_frame, label_table, write_labels
from cleantune.pipeline.plan import MIN_SAMPLES_FOR_ESTIMATE, RunEstimate, estimate_run
from cleantune.pipeline.ray_train import launch_workers
from cleantune.pipeline.record import write_config
from cleantune.pipeline.resolve import ResolvedRun, configure_arguments, resolve
from cleantune.pipeline.summary import make_summary
from cleantune.pipeline.train_run import train_and_select
from cleantune.report import build_report
from cleantune.storage.files import read_json, write_json
from cleantune.storage.run_dir import RunDir
from cleantune.training.lora import merge as merge_adapters
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

if TYPE_CHECKING:
    import pandas as pd

    from cleantune.pipeline.predict import Model


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path
    """Folder of the run."""
    summary: dict[str, Any]
    """Table of summary.json."""

    @property
    def labels(self) -> pd.DataFrame:
        """Label table: one row per labeled sample of train and validation, worst first."""
        import pandas as pd

        return pd.read_parquet(self.path / RunDir.LABELS)

    @property
    def model(self) -> Model:
        """Selected model, loaded from the folder."""
        from cleantune.pipeline.predict import load

        return load(self.path)

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.path / RunDir.REPORT


def fit(
    data: Any = None,
    model: Any = None,
    *,
    out: str | Path,
    method: str | None = None,
    scope: str | None = None,
    preset: str | None = None,
    seed: int | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Train on noisy labels; write the model, the list of wrong labels and the report.

    Args:
        data: Image folder, table, embeddings (.npz), Hugging Face folder or `hf:NAME`, a `datasets.Dataset`, a pandas
            frame, a mapping of arrays or `(features, labels)`.
        model: Checkpoint folder or hub id of transformers, or a backbone from `cleantune.backbones.open_backbone`.
        out: Folder of the run. One that is not empty is refused unless `resume` or `overwrite` is set.
        method: `robust` (default) or another name that `cleantune methods` lists.
        scope: `head` (linear probing), `all` (full fine-tuning) or `lora` (adapters of rank 8); None: the method's own.
        preset: Named settings of the method, such as `paper`.
        seed: Default for `split_seed`, `noise_seed` and `train_seed`.
        config: TOML file, such as another run's config.toml, or a table; the other arguments override it.
        settings: Fields by path, `{"method.tau": 0.7}` or `["method.tau=0.7"]`.
        resume: Continue an interrupted run; the result is bitwise identical to that of an uninterrupted one.
        overwrite: Remove an earlier run in `out` first.
        quiet: Print nothing.
        **options: Fields of the data, the model and the run by name: `label`, `test`, `image_size`, `noise`, …

    Returns:
        The finished run.

    Raises:
        UserError: An argument, the data or the model is refused; the sentence says what, where and how to fix it.

    Example:
        >>> result = fit("photos/", "google/vit-base-patch16-224", out="runs/photos")  # doctest: +SKIP
        >>> result.labels.head()  # doctest: +SKIP
    """
    arguments = FitArguments(
        data=data, model=model, method=method, scope=scope, preset=preset, seed=seed, config=config, settings=settings,
        options=options,
    )  # fmt: skip
    path = Path(out)
    configured = configure_arguments(arguments, resume_from=path if resume else None)
    group, workers = init_distributed(), configured.run.workers
    console = Console(quiet or not group.is_main)
    if group.world_size == workers == 1:
        return run_fit(configured, RunDir(path, resume=resume, overwrite=overwrite), console)
    # Every process opens the folder for itself, so an earlier run must go before they start.
    group.on_main(lambda: RunDir(path, resume=resume, overwrite=overwrite).clear())
    run_dir = RunDir(path, resume=True)
    if group.world_size == workers or workers == 1:
        return run_fit(configured, run_dir, console, group)
    if group.world_size > 1:
        raise UserError(
            f"--workers {workers}: this launcher has started {group.world_size} processes; leave --workers out"
        )
    if not run_dir.is_finished:
        uses_gpus = pick_device(configured.model.device) == "cuda"
        launch_workers(partial(run_worker, configured, path.resolve()), workers, run_dir, console, uses_gpus)
    return read_result(run_dir)


def plan(data: Any = None, model: Any = None, *, quiet: bool = False, **arguments: Any) -> RunEstimate:
    """Estimate what `fit` takes with the same arguments, by a probe of about ten seconds; train and keep nothing.

    Args:
        data: As in `fit`.
        model: As in `fit`.
        quiet: Print nothing about how data and model were read.
        **arguments: As in `fit`: method, scope, preset, seed, config, settings, and options by name.

    Returns:
        Forward passes, seconds, disk and memory.

    Raises:
        UserError: As in `fit`.
    """
    named = {name: arguments.pop(name, None) for name in ("method", "scope", "preset", "seed", "config", "settings")}
    config = configure_arguments(FitArguments(data=data, model=model, options=arguments, **named))
    return estimate_run(resolve(config, Console(quiet)))


def run_worker(config: Config, path: Path, console: Console) -> None:
    """Run the part of one worker."""
    run_fit(config, RunDir(path, resume=True), console, init_distributed())


def run_fit(config: Config, run_dir: RunDir, console: Console, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """Run the main job from its configuration to its last file; the first process of a group writes."""
    if run_dir.is_finished:
        console.info(f"{run_dir.path} is finished already")
        return read_result(run_dir)
    start = time.perf_counter()
    run = resolve(config, console)
    print_estimate(run, run_dir, console)
    inputs = prepare_inputs(
        run.config, run.data, run.backbone, console,
        compute=stored_compute(run_dir), trains_backbone=run.trains_backbone, group=group,
    )  # fmt: skip
    run_dir.clear()
    group.on_main(lambda: write_config(run_dir, run.config, run.phases, inputs))
    finished = train_and_select(run.config, inputs, run.phases, run_dir, console, run.noise, start)
    return write_results(finished, run_dir, console)


def print_estimate(run: ResolvedRun, run_dir: RunDir, console: Console) -> None:
    """Print the estimate of a new run, unless it is done before the estimate is."""
    num_samples = sum(len(rows) for rows in run.data.rows.values())
    if not console.quiet and num_samples >= MIN_SAMPLES_FOR_ESTIMATE and run_dir.load() is None:
        console.info("\n".join(estimate_run(run).lines()))


def write_results(finished: FinishedRun, run_dir: RunDir, console: Console) -> Result:
    """Write every file of a trained run; the summary marks it as finished."""
    predictions = artifacts.predict_splits(finished)

    def write() -> None:
        data = finished.inputs.data
        scores, table = artifacts.score_run(finished), label_table(data)
        labels = label_frame(scores, table, artifacts.selected_rows(finished))
        write_labels(run_dir.path, labels)
        artifacts.write_artifacts(run_dir.path, finished, labels)
        if "unlabeled" in data.rows:
            artifacts.write_unlabeled(run_dir.path, data, predictions["unlabeled"])
        write_model(finished, run_dir)
        summary = make_summary(finished, scores, table, predictions)
        write_json(run_dir.path / RunDir.SUMMARY, summary)
        report = build_report(run_dir.path)
        count = summary["issues"]["count"]
        console.info(f"{count:,} of {len(labels):,} labels are listed as wrong: {run_dir.path / RunDir.LABELS_CSV}")
        console.info(f"report: {report}")

    finished.inputs.group.on_main(write)
    return read_result(run_dir)


def write_model(finished: FinishedRun, run_dir: RunDir) -> None:
    """Write the selected model, with adapters merged into the weights of its backbone."""
    models, data = [model.cpu() for model in finished.trainer.models], finished.inputs.data
    for model in models:
        if model.backbone is not None:
            merge_adapters(model.backbone)
    save_models(run_dir.path / RunDir.MODEL, models, classes=data.classes, class_values=data.class_values)


def read_result(run_dir: RunDir) -> Result:
    """Read the result of a finished run."""
    return Result(run_dir.path, read_json(run_dir.path / RunDir.SUMMARY))
