"""Run a search: extract features once, train trials by Ray Tune, choose one and write its config and a page."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from cleantune.config.run import config_to_dict, configure, read_config
from cleantune.errors import UserError, did_you_mean
from cleantune.methods.protocol import EpochMetrics, Phase
from cleantune.pipeline.inputs import RunInputs
from cleantune.pipeline.ray_train import first_line, ray_session
from cleantune.pipeline.resolve import load_data, open_model
from cleantune.storage.files import write_json, write_text
from cleantune.studies.grid import FAILED, RECORD, is_finished, open_study, run_cell
from cleantune.studies.search.page import build
from cleantune.studies.search.ranking import Ranking, rank, sentences
from cleantune.studies.search.space import points_of, space_of
from cleantune.studies.search.trial_table import TrialTable
from cleantune.studies.search.trials import (
    OBJECTIVES,
    PENDING,
    Study,
    compute_trial,
    trials_frame,
    without_test,
    write_trials,
)
from cleantune.studies.training_cell import shared_inputs
from cleantune.training.epochs import phases
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device
from cleantune.utils.environment import default_environment, use_threads

MAX_RESTARTS = 2
"""Restarts of a trial whose process died."""
RAY_TUNE_SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment of Ray Tune, whose progress table is off."""


def run(
    table: dict[str, Any],
    out: Path,
    *,
    trials: int | None,
    space: str | Mapping[str, Any] | None,
    objective: str,
    seed: int,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> Path:
    """Run a search from the default trial's settings to its page.

    Args:
        table: Settings of the default trial, as `fit` takes them.
        out: Folder of the search.
        trials: Number of trials with the default; None: see `points_of`.
        space: Search space, see `space_of`.
        objective: One of `OBJECTIVES`.
        seed: Seed of the settings that are drawn.
        resume: Continue the search in the folder.
        overwrite: Remove an earlier search from the folder.
        quiet: Print nothing.

    Returns:
        The folder.

    Raises:
        UserError: The user can correct something; the message says what, where and how.
    """
    console = Console(quiet)
    if objective not in OBJECTIVES:
        raise UserError(f'--objective "{objective}"{did_you_mean(objective, OBJECTIVES)}')
    if trials is not None and trials < 2:
        raise UserError(f"--trials {trials}: the default is one trial, so there must be at least two")
    config = configure(table)
    if config.run.workers != 1:
        raise UserError("run.workers: a search runs trials in parallel, each in one process; leave workers out")
    data, noise = load_data(config, console)
    if "validation" not in data.rows:
        raise UserError("a search needs a validation split and there is none: set --validation-fraction 0.1")
    data = replace(data, rows={name: rows for name, rows in data.rows.items() if name in ("train", "validation")})
    features_only = data.kind == "features"
    backbone = open_model(config.model, features_only)
    kind = backbone.architecture.model_type if backbone is not None else None
    config = configure(table, kind, features_only)
    todo = phases(config.method, backbone.learning_rate if backbone is not None else 0.0)
    dimensions = space_of(config.method, todo, space)
    points = [{}, *points_of(dimensions, trials, seed, config.method.scope)]
    study = Study(table, tuple(dimensions), tuple(points), objective, kind, features_only, noise, out.resolve())
    for trial in range(len(points)):
        configure(study.table_of(trial), kind, features_only)  # refuse a value outside its range before anything runs
    record = {"search": {"objective": objective, "points": points}}
    open_study(out, "search", config_to_dict(config), resume=resume, overwrite=overwrite, record=record)
    trains = any(phase.scope == "all" for phase in todo)
    inputs = without_test(shared_inputs(config, data, backbone, console, trains, study.out / "compute.json"))
    console.info(f"{len(points)} trials over {', '.join(d.name for d in dimensions)}; objective: {objective}")
    pending = [trial for trial in range(len(points)) if not is_finished(study.path(trial))]
    if pending:
        run_trials(study, pending, inputs, todo, console)
    return choose_trial(study, len(data.rows["validation"]), console)


def run_trials(study: Study, pending: list[int], inputs: RunInputs, todo: tuple[Phase, ...], console: Console) -> None:
    """Run the pending trials by Ray Tune.

    Raises:
        UserError: Ray is missing or its session was lost.
        KeyboardInterrupt: The user has interrupted the search.
    """
    gpu = int(pick_device(inputs.device) == "cuda" and any(phase.scope == "all" for phase in todo))
    with default_environment(RAY_TUNE_SETTINGS), ray_session(1) as ray:
        from ray import tune

        # Pixels, features and labels are in Ray's object store, once per machine.
        shared, table = ray.put(inputs), TrialTable(study, pending, console)
        tuner = tune.Tuner(
            tune.with_resources(Trainable(study, shared), {"cpu": 1, "gpu": gpu}),
            param_space={"trial": tune.grid_search(pending)},
            tune_config=tune.TuneConfig(
                metric="accuracy_validation", mode="max", reuse_actors=True, scheduler=make_scheduler(todo)
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(study.out / "ray"),
                verbose=0,
                callbacks=[table.callback()],
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            ),
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                results = tuner.fit()
        except Exception as error:  # Ray has many exceptions, all of which end the search
            raise UserError(
                f"Ray ended the search: {first_line(error)}; finished trials are on disk, continue with --resume"
            ) from error
    for result in results:
        trial = result.config["trial"]
        if result.error is not None and not is_finished(study.path(trial)):
            write_json(study.path(trial) / RECORD, {"status": FAILED, "reason": first_line(result.error)})
    shutil.rmtree(study.out / "ray", ignore_errors=True)
    if any(study.record(trial)["status"] == PENDING for trial in pending):
        raise KeyboardInterrupt


class Trainable:
    """The function that Ray calls for each trial, in a process of its own."""

    __name__ = "trial"

    def __init__(self, study: Study, shared: Any) -> None:
        """Keep the study and the reference to the inputs in Ray's object store."""
        self.study, self.shared = study, shared

    def __call__(self, config: dict[str, Any]) -> None:
        """Run one trial and report each of its epochs to the scheduler."""
        import ray
        from ray import tune

        use_threads(1)  # trials share the processor
        num_epochs = 0

        def report(row: EpochMetrics) -> None:
            nonlocal num_epochs
            num_epochs += 1
            tune.report({"accuracy_validation": row["accuracy_validation"] or 0.0, "row": num_epochs})

        trial = config["trial"]
        run_cell(self.study.path(trial), partial(compute_trial, self.study, trial, ray.get(self.shared), report))


def make_scheduler(todo: tuple[Phase, ...]) -> Any:
    """Return ASHA if the backbone is trained, else None: heads are cheap enough to train all of them to the end.

    A trial is compared only after its first epoch of fine-tuning.
    """
    if all(phase.scope == "head" for phase in todo):
        return None
    from ray.tune.schedulers import ASHAScheduler

    total = sum(phase.stage.epochs for phase in todo)
    before = sum(phase.stage.epochs for phase in todo[: next(i for i, p in enumerate(todo) if p.scope == "all")])
    return ASHAScheduler(time_attr="row", grace_period=before + 1, max_t=max(total, before + 1) + 1, reduction_factor=3)


def choose_trial(study: Study, num_validation: int, console: Console) -> Path:
    """Rank the trials; write the table, the config of the chosen trial and the page, and return the folder.

    Raises:
        UserError: No trial has finished.
    """
    finished = [trial for trial in range(len(study.points)) if study.scores(trial) is not None]
    if not finished:
        frame = trials_frame(study)
        write_trials(study, frame)
        reasons = frame["reason"].dropna()
        first = reasons.iloc[0] if len(reasons) else "unknown"
        raise UserError(f"no trial has finished; the first one failed: {first}; correct it and continue with --resume")
    ranking = rank_trials(study, finished)
    frame = trials_frame(study, ranking.tied, ranking.chosen)
    write_trials(study, frame)
    write_best(study, ranking.chosen)
    objective = {trial: study.record(trial)["objective"] for trial in finished}
    summary = sentences(ranking, objective, is_fraction=study.objective != "noisy-val-gce")
    write_json(study.out / "ranking.json", asdict(ranking) | {"summary": summary, "validation_samples": num_validation})
    page = build(study, frame, ranking, summary)
    for line in summary:
        console.info(line)
    console.info(f"best config: {study.out / 'best.toml'}\npage: {page}")
    return study.out


def rank_trials(study: Study, finished: list[int]) -> Ranking:
    """Return the ranking of the finished trials by their numbers; without the default, the best is chosen."""
    scores = [study.scores(trial) for trial in finished]
    objective = np.asarray([study.record(trial)["objective"] for trial in finished])
    ranking = rank(np.stack([s for s in scores if s is not None]), objective)
    chosen = ranking.chosen if finished[0] == 0 else ranking.best
    tied = tuple(finished[k] for k in ranking.tied)
    return replace(ranking, best=finished[ranking.best], chosen=finished[chosen], tied=tied)


def write_best(study: Study, chosen: int) -> None:
    """Write best.toml: the resolved settings of the chosen trial, as `fit --config` reads them."""
    table = read_config(study.path(chosen) / "config.toml")
    for part in ("data", "model"):  # Python objects have no name that a file could contain
        table[part] = {k: v for k, v in table[part].items() if not (isinstance(v, str) and v.startswith("<"))}
    head = f"# Trial {chosen} of a search; cleantune fit DATA --config best.toml --out RUN\n"
    write_text(study.out / "best.toml", head + tomli_w.dumps(table))
