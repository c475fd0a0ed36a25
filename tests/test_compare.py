"""Test comparisons from data to page, on embeddings and on a few images with a tiny network."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import color_table
from test_cli import exit_code
from tiny import save_tiny

import cleantune
from cleantune.errors import UserError
from cleantune.methods import METHODS
from cleantune.storage.run_dir import RunDir
from cleantune.studies.compare import estimate, run
from cleantune.studies.compare.resolve import arguments_to_table, resolve
from cleantune.studies.compare.scores import mean_std, scores, standard_error
from cleantune.studies.grid import RECORD

QUICK = {"method.probe.epochs": 3, "method.probe.min_steps": 0, "method.tune.epochs": 2, "robust.tune_visits": 1.0}
COLUMNS = {
    "method", "scope", "noise", "model", "seed", "accuracy_last", "accuracy_best_validation", "noise_true_rate",
    "forward_passes", "seconds", "status", "reason", "purity", "recall", "auroc", "learning_rate", "model_selection",
    "balanced_accuracy",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: a second one slows small tensors down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "BUDGET", 0.1)


def blobs(N: int = 240, seed: int = 0) -> dict[str, np.ndarray]:
    """Return embeddings of four slightly overlapping classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 4
    return {"features": (rng.normal(size=(N, 8)) + 2.5 * np.eye(8)[y]).astype(np.float32), "label": y}


def small(out: Path, **changes: Any) -> cleantune.Comparison:
    """Run a matrix on embeddings, which takes seconds."""
    options: dict[str, Any] = {
        "methods": ["ce", "gce"], "noises": ["symmetric:0.4"], "seeds": 2, "test_fraction": 0.25, "quiet": True,
        "settings": {"method.probe.epochs": 3, "method.probe.min_steps": 0},
    }  # fmt: skip
    return cleantune.compare(changes.pop("data", blobs()), out=out, **options | changes)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> cleantune.Comparison:
    """Run one matrix on images with methods, scopes, noises and seeds."""
    folder = tmp_path_factory.mktemp("images")
    save_tiny("resnet", folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "BUDGET", 0.1)
        patch.setenv("CLEANTUNE_CACHE", str(folder / "cache"))
        return cleantune.compare(
            color_table(folder), folder / "model", out=folder / "out", methods=["ce", "robust"], scopes=["head", "all"],
            noises=["none", "symmetric:0.4"], seeds=2, true_label="true", test_fraction=0.3, settings=QUICK,
            quiet=True, precision="float32",
        )  # fmt: skip


def test_compare_table_has_contract_columns_per_cell(
    images: cleantune.Comparison,
) -> None:
    table = images.table
    assert set(table.columns) >= COLUMNS
    assert len(table) == 3 * 2 * 2
    assert (table["status"] == "done").all()
    assert table["accuracy_last"].between(0, 1).all()
    assert (table["seconds"] > 0).all()
    assert set(table["model_selection"]) == {"last"}


def test_resolve_gives_probe_and_tune_methods_one_entry(images: cleantune.Comparison) -> None:
    cells = set(zip(images.table["method"], images.table["scope"], images.table["tuning"], strict=True))
    assert cells == {("ce", "head", "LP"), ("ce", "all", "FFT"), ("robust", "all", "LP-FFT")}
    matrix = resolve(
        {"matrix": {"methods": ["turn", "ce"], "scopes": ["head"]}, "data": {"data": "x"}}, features_only=True
    )
    assert [(e.method, e.scope, e.tuning) for e in matrix.entries] == [("turn", "head", "LP"), ("ce", "head", "LP")]


def test_compare_cells_of_one_seed_share_labels_and_splits(images: cleantune.Comparison) -> None:
    rates = images.table.groupby(["noise", "seed"])["noise_true_rate"].nunique()
    assert (rates == 1).all()
    marks = {}
    for config in (images.path / "cells").glob("*/config.toml"):
        text = config.read_text()
        seed = re.search(r'noise = "(.+)"\n', text)[1], re.search(r"noise_seed = (\d+)", text)[1]  # type: ignore[index]
        marks.setdefault(seed, set()).add(re.search(r'data_fingerprint = "(\w+)"', text)[1])  # type: ignore[index]
    assert all(len(each) == 1 for each in marks.values())


def test_compare_extracts_features_once_per_model(images: cleantune.Comparison) -> None:
    assert len(list((images.path.parent / "cache").glob("features-*"))) == 3, "one of train, validation and test each"


def test_compare_cell_is_bitwise_equal_to_fit(images: cleantune.Comparison, tmp_path: Path) -> None:
    row = images.table[(images.table["method"] == "robust") & (images.table["noise"] != "none")].iloc[0]
    cell = images.path / row["folder"]
    alone = cleantune.fit(
        config=cell / "config.toml", out=tmp_path / "alone", quiet=True, cache=str(images.path.parent / "cache")
    )
    assert alone.summary["accuracy"]["test"] == row["accuracy_last"]
    assert alone.summary["cost"]["forward_passes"] == row["forward_passes"]
    cell_rows = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
    fit_rows = [json.loads(line) for line in (alone.path / "metrics.jsonl").read_text().splitlines()]
    for a, b in zip(cell_rows, fit_rows, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_compare_removes_checkpoints_of_finished_cells(images: cleantune.Comparison) -> None:
    assert not list((images.path / "cells").glob("*/checkpoint"))


def numbers(done: cleantune.Comparison) -> pd.DataFrame:
    """Return the table without durations."""
    return done.table.drop(columns=["seconds", "seconds_extract"])


@pytest.mark.parametrize("saves", [1, 4, 8])
def test_compare_resumes_to_bitwise_equal_results(saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(tmp_path / "whole")
    save, count = RunDir.save, 0

    def killed(self: RunDir, *state: Any) -> None:
        nonlocal count
        save(self, *state)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "torn")
    monkeypatch.setattr(RunDir, "save", save)
    torn = small(tmp_path / "torn", resume=True)
    pd.testing.assert_frame_equal(numbers(torn), numbers(whole))


def test_compare_keeps_finished_cells_after_a_kill(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **blobs())
    line = [sys.executable, "-m", "cleantune", "compare", str(tmp_path / "data.npz"), "--methods", "ce,gce", "--seeds",
            "6", "--noise", "symmetric:0.4", "--test-fraction", "0.25", "--out", str(tmp_path / "out"),
            "--set", "method.probe.epochs=3", "--set", "method.probe.min_steps=0"]  # fmt: skip
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    summaries = lambda: list((tmp_path / "out" / "cells").glob(f"*/{RECORD}"))  # noqa: E731
    limit = time.monotonic() + 60
    while len(summaries()) < 2 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in summaries()}
    assert 2 <= len(before) < 12
    done = cleantune.compare(out=tmp_path / "out", resume=True, quiet=True)
    assert (done.table["status"] == "done").all()
    assert len(done.table) == 12
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_compare_lists_a_failed_cell_and_runs_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_cell = run.train_cell

    def fragile(config: Any, *rest: Any) -> Any:
        if config.name == "gce" and config.run.train_seed == 0:
            raise RuntimeError("the bridge\nis <b>out</b>")
        return train_cell(config, *rest)

    monkeypatch.setattr(run, "train_cell", fragile)
    done = small(tmp_path / "out")
    table = done.table.set_index(["method", "seed"])
    assert table["status"].to_dict() == {("ce", 0): "done", ("gce", 0): "failed", ("ce", 1): "done", ("gce", 1): "done"}
    assert table.loc[("gce", 0), "reason"] == "RuntimeError: the bridge is <b>out</b>"
    assert pd.isna(table.loc[("gce", 0), "accuracy_last"])
    assert table.loc[("gce", 0), "noise_true_rate"] == pytest.approx(table.loc[("ce", 0), "noise_true_rate"])
    assert "the bridge is" in done.markdown
    page = done.page.read_text()
    assert "the bridge is &lt;b&gt;out&lt;/b&gt;" in page
    assert "1 of 4 cells failed" in page
    monkeypatch.setattr(run, "train_cell", train_cell)
    assert (small(tmp_path / "out", resume=True).table["status"] == "done").all(), "--resume tries it again"


def naive_marks(rows: list[tuple[str, float]], size: int) -> dict[str, str]:
    """Return the best and its ties, computed with loops."""
    stats = {}
    for entry in {name for name, _ in rows}:
        values = [value for name, value in rows if name == entry]
        mean = sum(values) / len(values)
        spread = sum((v - mean) ** 2 for v in values)
        of_seeds = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else 0.0
        stats[entry] = (mean, max(of_seeds, math.sqrt(mean * (1 - mean) / size)))
    best = max(stats, key=lambda e: stats[e][0])
    marks = {}
    for entry, (mean, error) in stats.items():
        inside = stats[best][0] - mean <= max(error, stats[best][1])
        marks[entry] = "best" if entry == best else "tie" if inside else ""
    return marks


def test_scores_mark_best_and_ties_as_a_naive_loop_does() -> None:
    rng, seen = np.random.default_rng(0), set()
    for trial in range(60):
        size, seeds = int(rng.integers(100, 5000)), int(rng.integers(1, 5))
        rows = [
            (f"m{e}", float(np.clip(rng.normal(0.6 + 0.01 * e, 0.02), 0, 1))) for e in range(5) for _ in range(seeds)
        ]
        frame = pd.DataFrame(rows, columns=["entry", "accuracy"])
        frame = frame.assign(
            tuning="LP", model="m", noise="n", status="done", test_size=size,
            accuracy_last=frame["accuracy"], accuracy_best_validation=frame["accuracy"],
        )  # fmt: skip
        marks = {s.entry: s.mark for s in scores(frame)["m", "n"]}
        assert marks == naive_marks(rows, size), trial
        seen |= set(marks.values())
    assert seen == {"best", "tie", ""}


def test_standard_error_is_the_larger_of_seeds_and_split() -> None:
    assert standard_error(0.5, 0.0, 3, 100) == pytest.approx(0.05)
    assert standard_error(0.5, 0.3, 9, 100) == pytest.approx(0.1)
    assert standard_error(1.0, None, 1, 100) == 0
    assert mean_std(pd.Series([0.5])) == (0.5, None)
    assert mean_std(pd.Series([0.4, 0.6])) == (pytest.approx(0.5), pytest.approx(math.sqrt(0.02)))


def test_compare_config_repeats_the_matrix(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **blobs())
    first = small(tmp_path / "first", data=tmp_path / "data.npz")
    again = cleantune.compare(config=first.path / "config.toml", out=tmp_path / "again", quiet=True)
    pd.testing.assert_frame_equal(numbers(again), numbers(first))
    assert (again.path / "compare.md").read_text() == first.markdown
    assert (again.path / "config.toml").read_text() == (first.path / "config.toml").read_text()


def test_compare_entries_have_their_own_settings_and_presets(tmp_path: Path) -> None:
    config = {
        "matrix": {
            "entries": [
                {"name": "short", "method": "gce", "scope": "head", "settings": {"probe": {"epochs": 2}}},
                {"name": "as published", "method": "gce", "scope": "head", "preset": "paper"},
            ],
            "seeds": 1,
        },
        "data": {"test_fraction": 0.25},
    }
    done = cleantune.compare(blobs(), config=config, out=tmp_path / "out", quiet=True)
    assert done.table["entry"].tolist() == ["short", "as published"]
    assert done.epochs.groupby("entry").size().to_dict() == {"short": 2, "as published": 20}
    assert done.table["learning_rate"].tolist() == [METHODS["gce"]().probe.learning_rate, 1e-3]  # type: ignore[attr-defined]


def test_tune_selects_rates_on_noisy_validation_alone(tmp_path: Path) -> None:
    data = blobs(320)
    test = blobs(80, seed=1)
    changes: dict[str, Any] = {"tune": True, "test_fraction": 0.0, "noises": ["symmetric:0.4"]}
    done = small(tmp_path / "out", data=data, test=test, **changes)
    folders = [path.name for path in (done.path / "cells").iterdir()]
    assert len(folders) == 2 * (3 + 1)
    table = done.table
    for entry, block in table.groupby("entry"):
        tried = re.findall(r"x ([\d.]+): ([\d.]+) %", block["learning_rates_tried"].iloc[0].partition(" of ")[2])
        taken = float(re.match(r"x ([\d.]+) of", block["learning_rates_tried"].iloc[0])[1])  # type: ignore[index]
        assert len(tried) == 3, entry
        assert float(dict(tried)[f"{taken:.3g}"]) == max(float(value) for _, value in tried)
        assert block["learning_rate"].nunique() == 1, "the rate of the first seed serves all"
        default = METHODS[str(entry)]().probe.learning_rate  # type: ignore[attr-defined]
        assert block["learning_rate"].iloc[0] == pytest.approx(default * taken, rel=1e-2)
    shuffled = {"features": test["features"], "label": np.roll(test["label"], 1)}
    blind = small(tmp_path / "blind", data=data, test=shuffled, **changes).table
    assert blind["learning_rate"].tolist() == table["learning_rate"].tolist()
    assert blind["accuracy_last"].tolist() != table["accuracy_last"].tolist()


def test_tune_trains_all_seeds_at_the_best_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarize = run.summarize

    def favor_high_rates(finished: Any) -> dict[str, Any]:
        summary = summarize(finished)
        summary["accuracy"]["validation"] = summary["learning_rate"]
        return summary

    monkeypatch.setattr(run, "summarize", favor_high_rates)
    table = small(tmp_path / "out", methods=["ce"], tune=True).table
    assert (table["status"] == "done").all()
    default = METHODS["ce"]().probe.learning_rate  # type: ignore[attr-defined]
    assert table["learning_rate"].tolist() == pytest.approx([3 * default, 3 * default])
    again = small(tmp_path / "out", methods=["ce"], tune=True, resume=True)
    pd.testing.assert_frame_equal(numbers(again), table.drop(columns=["seconds", "seconds_extract"]))


def test_compare_frees_a_cell_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_cell, trainers, num_alive = run.train_cell, [], []

    def watched(*args: Any) -> Any:
        num_alive.append(sum(trainer() is not None for trainer in trainers))
        finished = train_cell(*args)
        trainers.append(weakref.ref(finished.trainer))
        return finished

    monkeypatch.setattr(run, "train_cell", watched)
    small(tmp_path / "out")
    assert num_alive == [0, 0, 0, 0]


def test_compare_table_names_the_model_selection(tmp_path: Path) -> None:
    table = small(tmp_path / "out", model_selection="noisy-val", seeds=1).table
    assert set(table["model_selection"]) == {"noisy-val"}
    assert table["accuracy"].tolist() == table["accuracy_best_validation"].tolist()


HOSTILE = "<script>alert(1)</script>|`*"


def test_compare_page_escapes_names_and_needs_no_network(tmp_path: Path) -> None:
    entries = [{"name": HOSTILE, "method": "ce", "scope": "head"}]
    done = small(tmp_path / "out", methods=[], entries=entries, seeds=1)
    page = done.page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", page)
    assert "://" not in page
    assert "<script" not in done.markdown.replace("\\<", "")
    rows = [line for line in done.markdown.splitlines() if line.startswith("| LP")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4]


def test_compare_page_plots_have_titles_and_units(images: cleantune.Comparison) -> None:
    page = images.page.read_text()
    for words in (
        "test accuracy (%)", "forward passes (multiples of the training split)", "without a cache (multiples",
        "correct fraction of the selected labels (%)", "selected fraction of the correct labels (%)",
    ):  # fmt: skip
        assert words in page
    assert page.count("<figcaption><b>") == page.count('class="plot"') == 2 + 2 + 2 * 2


def test_compare_prints_the_estimate_before_the_first_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path / "out", quiet=False)
    printed = capsys.readouterr().err
    assert printed.index("estimate from the cost model") < printed.index("0 of 4 cells done")
    assert "forward passes per cell" in printed
    assert re.search(r"3 of 4 cells done, about .+ left; running: gce LP, symmetric:0\.4, features, seed 1", printed)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--methods", "ce,gec"], 'unknown method "gec"; did you mean "gce"'),
        (["--scopes", "heads"], 'unknown scope "heads"; did you mean "head"'),
        (["--scopes", "all"], "only --scopes head works"),
        (["--noise", "symetric:0.4"], 'did you mean "symmetric"'),
        (["--noise", "symmetric:4"], "is no rate between 0 and 1"),
        (["--seeds", "three"], "--seeds three"),
        (["--seeds", "0"], "--seeds 0"),
        (["--set", "method.prob.epochs=3"], 'did you mean "probe"'),
        (["--set", "turn.taau=0.3", "--methods", "turn"], 'did you mean "tau"'),
        (["--set", "turn.tau=0.3", "--methods", "ce"], "turn is not compared here"),
        (["--set", "matrix.sede=3"], 'did you mean "seeds"'),
        (["--preset", "papre"], 'did you mean "paper"'),
        (["--set", "run.noise_seed=3"], "by matrix.seeds"),
        (["--test-fraction", "0"], "--test-fraction 0.2"),
        (["--config", "nowhere.toml"], "no configuration file nowhere.toml"),
        (["--lable", "label"], "--label"),
    ],
)
def test_compare_refuses_bad_input_in_one_sentence(
    args: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **blobs(40))
    out = ["--out", str(tmp_path / "out")]
    fraction = [] if "--test-fraction" in args else ["--test-fraction", "0.25"]
    assert exit_code(["compare", str(tmp_path / "data.npz"), *out, *fraction, *args]) == 2
    printed = capsys.readouterr().err
    assert word in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_compare_refuses_a_used_folder_and_keeps_its_files(tmp_path: Path) -> None:
    done = small(tmp_path / "out")
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is not empty; continue it with --resume"):
        small(tmp_path / "out")
    with pytest.raises(UserError, match=r"matrix\.entries is \['ce'\] now and was \['ce', 'gce'\]"):
        small(tmp_path / "out", resume=True, methods=["ce"])
    with pytest.raises(UserError, match=r"matrix\.seeds is \[0\] now and was \[0, 1\]"):
        small(tmp_path / "out", resume=True, seeds=1)
    with pytest.raises(UserError, match=r"data\.split_seed is 3 now and was 0"):
        small(tmp_path / "out", resume=True, split_seed=3)
    with pytest.raises(UserError, match=r"matrix\.entries\[0\]\.settings\.probe\.epochs is 4 now and was 3"):
        small(tmp_path / "out", resume=True, settings={"method.probe.epochs": 4, "method.probe.min_steps": 0})
    with pytest.raises(UserError, match="unknown method"):
        small(tmp_path / "out", overwrite=True, methods=["cee"])
    assert {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()} == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("[method]\nname = 'ce'\n")
    with pytest.raises(UserError, match="has run and no matrix"):
        small(tmp_path / "run", overwrite=True)


def test_compare_does_not_rerun_a_finished_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(tmp_path / "out")
    table = first.table
    monkeypatch.setattr(run, "train_cell", None)
    pd.testing.assert_frame_equal(small(tmp_path / "out", resume=True).table, table)


def test_resolve_refuses_two_entries_of_one_name() -> None:
    entries = [{"method": "ce", "scope": "head"}, {"method": "ce", "scope": "head", "settings": {"probe": {}}}]
    with pytest.raises(UserError, match='two entries have the name "ce"'):
        resolve({"matrix": {"entries": entries}, "data": {"data": "x"}})


def test_arguments_override_the_config() -> None:
    table = arguments_to_table("x", "other", {"seeds": 5}, None, {"matrix": {"seeds": 1, "models": ["one"]}}, None, {})
    matrix = resolve(table)
    assert matrix.seeds == (0, 1, 2, 3, 4)
    assert matrix.models == ("other",)


def test_compare_is_callable_after_any_import_order() -> None:
    line = (
        "import cleantune.studies.compare.matrix, cleantune; assert callable(cleantune.compare);"
        "from cleantune.studies.compare import compare; assert callable(compare) and callable(cleantune.compare)"
    )
    subprocess.run([sys.executable, "-c", line], check=True)
