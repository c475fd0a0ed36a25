"""Test transfer studies: files of the paper, resumption, tables, and data of other domains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cleantune.cli.main import cli
from cleantune.errors import UserError
from cleantune.studies.grid import RECORD
from cleantune.studies.transfer import make_synthetic, read, relocate, run, study_from_dict
from cleantune.studies.transfer.datasets import load_task
from cleantune.studies.transfer.run import sample_fraction
from cleantune.studies.transfer.study import Study
from cleantune.studies.transfer.table import means
from cleantune.utils.console import Console

PAPER = sorted((Path(__file__).resolve().parents[1] / "runs" / "paper").glob("nmtune_*.toml"))
QUICK = {"probe": {"epochs": 1, "batch_size": 64, "min_steps": 0}}


def embeddings(folder: Path, classes: int = 3, count: int = 90, shift: float = 0.0) -> Path:
    """Write separable features with labels."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % classes
    x = rng.normal(size=(count, 8)) + 4 * np.eye(classes, 8)[y] + shift
    path = folder / f"features-{shift:g}.npz"
    np.savez(path, features=x.astype(np.float32), label=np.array([f"c{k}" for k in y]))
    return path


def table(folder: Path, **more: Any) -> dict[str, Any]:
    """Return a study on features that two tunings solve."""
    return {
        "title": "solvable",
        "model": [{"name": "given", "model": "none"}],
        "task": [
            {
                "name": "blobs", "kind": "features", "data": {"data": str(embeddings(folder)), "test_fraction": 0.3},
                "target": [{"name": "moved", "data": str(embeddings(folder, shift=0.5))}],
            }
        ],
        "tuning": [
            {"name": name, "method": method, "settings": {"probe": {"min_steps": 200, "learning_rate": 3e-3}}}
            for name, method in (("LP", "ce"), ("NMTune", "nmtune"))
        ],
        **more,
    }  # fmt: skip


def quick(made: Study) -> Study:
    """Return the study with one epoch, seed and fraction, and the first task of each shape."""
    shapes: dict[Any, Any] = {}
    for task in made.tasks:
        shapes.setdefault((task.metric, task.regression, bool(task.target), bool(task.source)), task)
    tunings = tuple(replace(one, settings=QUICK) for one in made.tunings)
    few = made.models[: 3 if made.title.startswith("ResNet") else 1]
    return replace(made, models=few, tasks=tuple(shapes.values()), tunings=tunings, seeds=(0,), fractions=(1.0,))


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_studies_run_on_synthetic_data(tmp_path: Path, path: Path) -> None:
    made = read(path)
    assert {t.method for t in made.tunings} == {"ce", "mlp", "nmtune"}
    assert {t.preset for t in made.tunings} == {None, "paper", "official"}
    small = make_synthetic(quick(made), tmp_path / "synthetic")
    frame = run(small, tmp_path / "out", console=Console(quiet=True), cache=str(tmp_path / "cache"))
    cells = len(small.models) * len(small.tasks) * len(small.tunings)
    assert frame.groupby(["model", "task", "tuning"]).ngroups == cells
    assert frame["score"].between(-1, 1).all()
    assert (frame["role"] == "ood").any()
    assert "mean nothing" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "figure-5-spectrum.svg").is_file() == (len(small.models) > 2)


def test_paper_studies_have_their_tasks_rates_and_fractions() -> None:
    found = {path.stem: read(path) for path in PAPER}
    assert set(found) == {"nmtune_resnet50", "nmtune_clip", "nmtune_vision", "nmtune_glue"}
    resnet, glue = found["nmtune_resnet50"], found["nmtune_glue"]
    assert [m.gamma for m in resnet.models] == [0.0, 0.05, 0.1, 0.2, 0.3]
    assert resnet.fractions == (0.1, 0.25, 0.5, 0.75, 1.0)
    assert sum(not task.target for task in resnet.tasks) == 14
    assert [len(task.target) for task in resnet.tasks if task.target] == [3, 3]
    assert sum(task.metric == "balanced_accuracy" for task in resnet.tasks) == 4
    assert [(t.name, t.metric) for t in glue.tasks if t.regression] == [("STS-B", "pearson")]
    assert all(task.eval_split == "validation" for task in glue.tasks)


def test_run_solves_a_study_and_continues_it(tmp_path: Path) -> None:
    made = study_from_dict(table(tmp_path, seeds=[0, 1]))
    frame = run(made, tmp_path / "out", console=Console(quiet=True))
    assert len(frame) == 2 * 2 * 2
    assert frame["score"].min() > 0.9
    assert set(frame["role"]) == {"id", "ood"}
    assert frame[["sve", "lsvr", "sve_raw", "lsvr_raw"]].notna().all(axis=None)
    records = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(records) == 4
    (records[0] / RECORD).unlink()
    before = {path: path.stat().st_mtime_ns for path in (folder / RECORD for folder in records[1:])}
    again = run(made, tmp_path / "out", console=Console(quiet=True))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), frame.drop(columns="seconds"))


def test_cell_folder_changes_with_every_setting(tmp_path: Path) -> None:
    files = set()
    for settings in ({}, {"q": 0.5}, {"q": 0.6}):
        entry = {"name": "LP", "method": "gce", "settings": settings}
        files |= {cell.folder for cell in study_from_dict(table(tmp_path, tuning=[entry])).cells()}
    assert len(files) == 3


def test_noise_changes_training_labels_only(tmp_path: Path) -> None:
    noises = ["none", "symmetric:1,include_self=false"]
    frame = run(study_from_dict(table(tmp_path, noises=noises)), tmp_path / "out", console=Console(quiet=True))
    inside = frame[(frame["role"] == "id") & (frame["tuning"] == "LP")].set_index("noise")["score"]
    assert inside["none"] > 0.9
    assert inside[noises[1]] < 0.2  # every training label is wrong, so the true class is the least likely


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_sample_fraction_takes_the_floor_per_class(fraction: float) -> None:
    y = np.repeat([0, 1, 2], [40, 25, 3])
    rows = sample_fraction(y, fraction, seed=0)
    assert len(set(rows.tolist())) == len(rows)
    assert np.bincount(y[rows]).tolist() == [max(1, int(fraction * n)) for n in (40, 25, 3)]


def test_means_weigh_domains_equally_per_run() -> None:
    rows = [
        {"noise": "none", "fraction": 1.0, "model": "m", "tuning": "t", "model_seed": 0, "seed": seed,
         "role": role, "domain": domain, "score": score}
        for seed, role, domain, score in [(0, "ood", "a", 0.2), (0, "ood", "b", 0.6), (1, "ood", "a", 0.4),
                                          (1, "ood", "b", 0.4), (0, "id", "x", 1.0)]
    ]  # fmt: skip
    found = means(pd.DataFrame(rows), "score", "ood")
    assert found.tolist() == pytest.approx([0.4, 0.4])
    assert found.index.get_level_values("seed").tolist() == [0, 1]


def test_source_domain_is_split_and_others_are_targets(tmp_path: Path) -> None:
    made = make_synthetic(study_from_dict(table(tmp_path, task=[
        {"name": "pacs", "data": {"data": "x"}, "domain_column": "domain", "source": "photo"}
    ])), tmp_path)  # fmt: skip
    sets = load_task(made.tasks[0])
    inside, other = sets.eval_sets
    assert set(other.data.domains) == {"elsewhere"}
    assert len(sets.train) + len(inside.data.codes) + len(other.data.codes) == 200
    assert not set(sets.train.ids) & set(inside.data.rows.ids)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": [{"name": "t", "data": {"data": "x"}, "source": "photo"}]}, "domain_column and source go together"),
        ({"tuning": [{"name": "a", "method": "nmtun"}]}, "nmtune"),
        ({"tuning": [{"name": "a", "method": "ce", "settings": {"scope": "all"}}]}, "only heads"),
        ({"tuning": [{"name": "a", "method": "ce"}, {"name": "a", "method": "gce"}]}, 'have the name "a"'),
        ({"fractions": [0.0]}, "fraction 0.0"),
        ({"taks": []}, "taks"),
    ],
)
def test_study_from_dict_refuses_bad_settings(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        study_from_dict({**table(tmp_path), **change})


def test_relocate_refuses_unknown_names(tmp_path: Path) -> None:
    made = relocate(study_from_dict(table(tmp_path)), {"given": "elsewhere"}, {"moved": "there.npz"})
    assert made.models[0].model == "elsewhere"
    assert made.tasks[0].targets[0].data == "there.npz"
    with pytest.raises(UserError, match="no such name"):
        relocate(made, {}, {"movd": "there.npz"})


def test_transfer_verb_runs_a_synthetic_study(tmp_path: Path) -> None:
    text = """
title = "small"
[[model]]
name = "resnet"
model = "nowhere"
[[task]]
name = "images"
data = { data = "nowhere" }
[[tuning]]
name = "LP"
method = "ce"
settings = { probe.epochs = 1, probe.min_steps = 0 }
"""
    path = tmp_path / "study.toml"
    path.write_text(text)
    done = CliRunner().invoke(cli, ["transfer", str(path), "--synthetic", "--quiet", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "| resnet | LP |" in done.output
    [record] = (tmp_path / "out" / "cells").iterdir()
    assert json.loads((record / RECORD).read_text())["rows"][0]["domain"] == "in-domain"
