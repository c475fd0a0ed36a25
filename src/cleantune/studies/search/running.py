"""Runs a search: features once, trials by Ray Tune, a table that grows with them, and an honest choice at the end."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from cleantune.config.run import Config, config_to_dict, configure, read_config
from cleantune.errors import UserError, did_you_mean
from cleantune.features.backend import ComputeConfig
from cleantune.methods.protocol import EpochMetrics, Phase
from cleantune.pipeline.inputs import RunInputs, prepare_inputs
from cleantune.pipeline.ray_train import first_line, ray_session
from cleantune.pipeline.record import versions
from cleantune.pipeline.resolve import load_data, open_model
from cleantune.storage.files import read_json, write_json, write_table, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.studies.search.live import TrialTable
from cleantune.studies.search.ranking import Ranking, rank, sentences
from cleantune.studies.search.space import points_of, space_of
from cleantune.studies.search.trials import (
    OBJECTIVES,
    Study,
    close_threads,
    frame_of,
    run_trial,
    values_of,
    without_test,
)
from cleantune.training.epochs import phases
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

RETRIES = 2
"""How often a trial whose process died is tried again."""


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
    """A search from its table to its page.

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    console = Console(quiet)
    if objective not in OBJECTIVES:
        raise UserError(f'--objective "{objective}"{did_you_mean(objective, OBJECTIVES)}')
    if trials is not None and trials < 2:
        raise UserError(f"--trials {trials}: the default is one trial, so there must be two at the least")
    config = configure(table)
    if config.run.workers != 1:
        raise UserError("run.workers: a search runs its trials side by side, each in one process; leave workers out")
    data, noise = load_data(config, console)
    if "validation" not in data.rows:
        raise UserError(
            "a search judges trials on the validation split and there is none: set --validation-fraction 0.1"
        )
    data = replace(data, rows={name: rows for name, rows in data.rows.items() if name in ("train", "validation")})
    only = data.kind == "features"
    backbone = open_model(config.model, only)
    kind = backbone.architecture.model_type if backbone is not None else None
    config = configure(table, kind, only)
    todo = phases(config.method, backbone.learning_rate if backbone is not None else 0.0)
    dimensions = space_of(config.method, todo, space)
    points = [{}, *points_of(dimensions, trials, seed, config.method.scope)]
    study = Study(table, tuple(dimensions), tuple(points), objective, kind, only, noise, out.resolve())
    for number in range(len(points)):
        configure(study.table_of(number), kind, only)  # every value is in its range, before anything runs
    open_folder(study, config, resume=resume, overwrite=overwrite)
    trains = any(phase.scope == "all" for phase in todo)
    material = without_test(
        prepare_inputs(config, data, backbone, console, compute=known(study.out), trains_backbone=trains)
    )
    write_json(
        study.out / "material.json", material.compute.to_dict()
    )
    console.info(f"{len(points)} trials over {', '.join(d.name for d in dimensions)}; objective: {objective}")
    left = [n for n in range(len(points)) if frame_row(study, n) != "done"]
    if left:
        tune_all(study, left, material, todo, console)
    return conclude(study, material, console)


def frame_row(study: Study, number: int) -> str:
    """How a trial stands."""
    path = study.folder(number)
    return "done" if any((path / f"{name}.json").is_file() for name in ("trial", "stopped")) else "left"


def known(out: Path) -> ComputeConfig | None:
    """What an interrupted search computed in."""
    if not (out / "material.json").is_file():
        return None
    return ComputeConfig.from_dict(read_json(out / "material.json"))


def open_folder(study: Study, config: Config, *, resume: bool, overwrite: bool) -> None:
    """The folder, with what makes the search; an interrupted one must be the same search.

    Raises:
        UserError: It holds something else.
    """
    out = study.out
    mine = {"points": list(study.points), "objective": study.objective, "default": config_to_dict(config)}
    if resume and (out / "search.json").is_file():
        stored = read_json(out / "search.json")
        for name, value in mine.items():
            if stored.get(name) != value:
                raise UserError(
                    f"--resume: the {name} of this search {'are' if name == 'points' else 'is'} not what it was;"
                    " resume with the same settings, or start anew with --overwrite"
                )
    RunDir(out, resume=resume, overwrite=overwrite, kind="search").clear()
    write_json(out / "search.json", mine)
    record = {"search": True, "versions": versions()}
    write_text(out / "config.toml", tomli_w.dumps(config_to_dict(config) | {"record": record}))


def tune_all(study: Study, left: list[int], material: RunInputs, todo: tuple[Phase, ...], console: Console) -> None:
    """Every trial that is left, by Ray Tune.

    Raises:
        UserError: Ray is missing or was lost.
        KeyboardInterrupt: The user has interrupted it.
    """
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune has a table of its own
    gpus = pick_device(material.device) == "cuda" and any(phase.scope == "all" for phase in todo)
    with ray_session(1) as ray:
        from ray import tune

        # Pixels, features and labels lie in Ray's object store once a machine; trials read them there.
        shared = ray.put(material)
        live = TrialTable(study, left, console)
        tuner = tune.Tuner(
            tune.with_resources(Trainable(study, shared), {"cpu": 1, "gpu": int(gpus)}),
            param_space={"trial": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                metric="accuracy_validation", mode="max", reuse_actors=True, scheduler=scheduler(todo)
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(study.out / "ray"),
                verbose=0,
                callbacks=[live.callback()],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            with live, contextlib.redirect_stdout(io.StringIO()):
                results = tuner.fit()
        except Exception as error:  # Ray has an exception for every way to fail, all of them end the search
            raise UserError(
                f"Ray ended the search: {first_line(error)}; finished trials are on disk, --resume goes on"
            ) from error
    for result in results:
        number = result.config["trial"]
        if result.error is not None and frame_row(study, number) != "done":
            write_json(study.folder(number) / "failed.json", {"reason": first_line(result.error)})
    shutil.rmtree(study.out / "ray", ignore_errors=True)
    open_ended = [n for n in left if frame_row(study, n) != "done" and not (study.folder(n) / "failed.json").is_file()]
    if open_ended:
        raise KeyboardInterrupt


class Trainable:
    """What Ray calls for each trial, in a process of its own."""

    __name__ = "trial"

    def __init__(self, study: Study, shared: Any) -> None:
        """Of a search whose material lies in Ray's object store."""
        self.study, self.shared = study, shared

    def __call__(self, config: dict[str, Any]) -> None:
        """One trial; each of its epochs is reported to the scheduler."""
        import ray
        from ray import tune

        close_threads()
        seen = 0

        def told(row: EpochMetrics) -> None:
            nonlocal seen
            seen += 1
            tune.report({"accuracy_validation": row["accuracy_validation"] or 0.0, "row": seen})

        run_trial(self.study, config["trial"], ray.get(self.shared), told)


def scheduler(todo: tuple[Phase, ...]) -> Any:
    """ASHA where the backbone learns; heads cost so little that each is trained to its end.

    No trial is judged before it has fine-tuned for an epoch.
    """
    if all(phase.scope == "head" for phase in todo):
        return None
    from ray.tune.schedulers import ASHAScheduler

    total = sum(phase.stage.epochs for phase in todo)
    before = sum(phase.stage.epochs for phase in todo[: next(i for i, p in enumerate(todo) if p.scope == "all")])
    return ASHAScheduler(time_attr="row", grace_period=before + 1, max_t=max(total, before + 1) + 1, reduction_factor=3)


def conclude(study: Study, material: RunInputs, console: Console) -> Path:
    """The table, the choice, the config of the chosen trial, and the page.

    Raises:
        UserError: No trial was finished.
    """
    from cleantune.studies.search.page import build

    frame = frame_of(study)
    finished = [n for n in range(len(study.points)) if values_of(study, n) is not None]
    if not finished:
        write_table(study.out / "trials.parquet", lambda path: frame.to_parquet(path, index=False))
        reasons = frame["reason"].dropna()
        raise UserError(
            f"no trial was finished; the first one: {reasons.iloc[0] if len(reasons) else 'unknown'};"
            " repair it and go on with --resume"
        )
    ranking = ranked(study, finished)
    frame = frame_of(study, ranking.tied, ranking.chosen)
    write_table(study.out / "trials.parquet", lambda path: frame.to_parquet(path, index=False))
    write_best(study, ranking.chosen, material)
    done = frame[frame["objective"].notna()]
    values_by_trial = dict(zip(done["trial"].tolist(), done["objective"].tolist(), strict=True))
    said = sentences(ranking, values_by_trial, points=study.objective != "noisy-val-gce")
    write_json(
        study.out / "ranking.json",
        asdict(ranking) | {"words": said, "validation": len(material.data.rows["validation"])},
    )
    page = build(study, frame, ranking, said)
    for line in said:
        console.info(line)
    console.info(f"best config: {study.out / 'best.toml'}\npage: {page}")
    return study.out


def ranked(study: Study, finished: list[int]) -> Ranking:
    """The ranking over trial numbers; where the default failed, no trial stands for it."""
    values = [values_of(study, n) for n in finished]
    objective = [read_json(study.folder(n) / "trial.json")["objective"] for n in finished]
    found = rank(np.stack([v for v in values if v is not None]), np.asarray(objective))
    chosen = found.chosen if finished[0] == 0 else found.best
    return replace(
        found, best=finished[found.best], chosen=finished[chosen], tied=tuple(finished[k] for k in found.tied)
    )


def write_best(study: Study, chosen: int, material: RunInputs) -> None:
    """best.toml: the resolved settings of the chosen trial, as `fit --config` takes them."""
    table = read_config(study.folder(chosen) / "config.toml")
    for part in ("data", "model"):  # what was given as Python objects cannot be named in a file
        table[part] = {k: v for k, v in table[part].items() if not (isinstance(v, str) and v.startswith("<"))}
    head = f"# Trial {chosen} of a search; cleantune fit DATA --config best.toml --out RUN\n"
    write_text(study.out / "best.toml", head + tomli_w.dumps(table))
