"""Search, extraction and distributed runs on Ray, in one session of two CPUs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from launched import launched
from test_resume import SETTINGS, pictures
from tiny import save_tiny

import cleantune
from cleantune.errors import UserError
from cleantune.studies.grid import RECORD

pytest.importorskip("ray")
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("ignore")]


def embeddings(path: Path, size: int = 240) -> Path:
    """Write features in three clusters, with one label in four wrong."""
    rng = np.random.default_rng(0)
    true = np.arange(size) % 3
    x = rng.normal(size=(3, 6))[true] * 2 + rng.normal(size=(size, 6))
    y = np.where(rng.random(size) < 0.25, (true + 1) % 3, true)
    np.savez(path, features=x.astype(np.float32), label=y)
    return path


def quick_search(folder: Path, **more: Any) -> Any:
    space = {"only": True, "method": {"probe": {"learning_rate": [1e-3, 1e-2], "batch_size": [16, 32]}}}
    given: dict[str, Any] = {"settings": ["method.probe.epochs=2", "method.probe.min_steps=0"], "quiet": True}
    return cleantune.search(  # type: ignore[operator]
        embeddings(folder / "data.npz"), method="gce", scope="head", space=space, out=folder / "search", **given | more
    )


def test_search_writes_table_config_and_page_as_fit_would(tmp_path: Path) -> None:
    done = quick_search(tmp_path)
    frame = done.trials
    assert len(frame) == 5, "the default and a grid of four"
    assert frame["status"].eq("done").all()
    assert frame["chosen"].sum() == 1
    assert {"probe.learning_rate", "probe.batch_size", "objective", "standard_error"} <= set(frame)
    page = done.page.read_text()
    assert "<svg" in page
    assert "learning_rate" in page
    assert not (done.path / "ray").exists()
    row = frame[frame["probe.learning_rate"].eq(1e-2) & frame["probe.batch_size"].eq(16)].iloc[0]
    again = cleantune.fit(
        tmp_path / "data.npz", config=done.path / row["folder"] / "config.toml", out=tmp_path / "fit", quiet=True
    )
    assert again.summary["accuracy"]["validation"] == row["accuracy_validation"]
    best = cleantune.fit(tmp_path / "data.npz", config=done.best, out=tmp_path / "best", quiet=True)
    chosen = frame[frame["chosen"]].iloc[0]
    assert best.summary["accuracy"]["validation"] == chosen["accuracy_validation"]

    # Resumed, it computes what is missing and nothing else; another search is refused.
    lost = done.path / "trials" / "0002"
    kept = (done.path / "trials" / "0003" / RECORD).stat().st_mtime_ns
    (lost / RECORD).unlink()
    (done.path / "trials" / "0001" / RECORD).write_text('{"status": "failed", "reason": "no memory"}')
    resumed = quick_search(tmp_path, resume=True)
    pd.testing.assert_series_equal(resumed.trials["objective"], frame["objective"])
    assert (done.path / "trials" / "0003" / RECORD).stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"record\.search\.points is"):
        quick_search(tmp_path, resume=True, trials=3)


def test_search_survives_a_failed_trial(tmp_path: Path) -> None:
    space = {"only": True, "method": {"probe": {"learning_rate": [1e-6, 10.0], "optimizer": ["sgd"]}}}
    data = embeddings(tmp_path / "data.npz")
    done = cleantune.search(  # type: ignore[operator]
        data, method="ce", scope="head", space=space, out=tmp_path / "search", quiet=True,
        settings=["method.probe.epochs=2", "method.probe.weight_decay=10000"],
    )  # fmt: skip
    frame = done.trials.set_index("trial")
    assert frame["status"].tolist() == ["done", "done", "failed"]
    assert "the loss is not finite" in frame.loc[2, "reason"]
    assert "the loss is not finite" in done.page.read_text()


def test_search_of_fine_tuning_stops_bad_trials_early(tmp_path: Path) -> None:
    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    done = cleantune.search(  # type: ignore[operator]
        tmp_path / "data.parquet", tmp_path / "model", label="label", method="ce", scope="all", out=tmp_path / "search",
        space={"only": True, "method": {"tune": {"backbone_learning_rate": {"low": 1e-6, "high": 1.0, "log": True}}}},
        trials=6, precision="float32", quiet=True, settings=["method.tune.epochs=4", "method.tune.batch_size=16"],
    )  # fmt: skip
    frame = done.trials
    assert frame["status"].eq("done").all(), frame["reason"].tolist()
    assert frame["stopped"].any()
    assert (frame.loc[frame["stopped"], "epochs"] < 4).all()
    assert frame.loc[~frame["stopped"], "epochs"].eq(4).all()
    assert not frame.loc[frame["chosen"], "stopped"].any()


def test_extracted_features_are_those_of_fit(tmp_path: Path) -> None:
    from cleantune.features.cache import find_features
    from cleantune.pipeline.arguments import FitArguments
    from cleantune.pipeline.ray_extract import extract_all
    from cleantune.pipeline.resolve import configure_arguments

    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    keys = {}
    for who in ("streamed", "fitted"):
        options = {"label": "label", "precision": "float32", "device": "cpu", "cache": str(tmp_path / who)}
        data, model = tmp_path / "data.parquet", tmp_path / "model"
        if who == "streamed":
            config = configure_arguments(FitArguments(data=data, model=model, options=options))
            counts = extract_all(config, workers=2, quiet=True)
            assert counts == {"train": 108, "validation": 12}
        cleantune.fit(
            data, model, method="ce", scope="head", out=tmp_path / f"run-{who}", quiet=True,
            settings=["method.probe.epochs=1", "method.probe.min_steps=0"], **options,
        )  # fmt: skip
        keys[who] = {path.name.split("-")[1] for path in (tmp_path / who).glob("features-*")}
    assert keys["streamed"] == keys["fitted"], "fit extracts nothing itself"
    for key in keys["fitted"]:
        one, other = find_features(tmp_path / "streamed", key), find_features(tmp_path / "fitted", key)
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def training_workers() -> list[psutil.Process]:
    """Return Ray's training workers, by their name in the list of processes."""
    return [p for p in psutil.process_iter(["cmdline"]) if "TrainWorker" in " ".join(p.info["cmdline"] or [])]


def test_run_with_a_killed_worker_equals_an_undisturbed_one(tmp_path: Path) -> None:
    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    common = {
        "label": "label", "true_label": "truth", "precision": "float32", "device": "cpu",
        "cache": str(tmp_path / "cache"), "settings": list(SETTINGS),
    }  # fmt: skip
    words = ["-m", "cleantune", "fit", str(tmp_path / "data.parquet"), "--model", str(tmp_path / "model"), "--out",
             str(tmp_path / "torchrun"), "--label", "label", "--true-label", "truth", "--precision", "float32",
             "--device", "cpu", "--cache", str(tmp_path / "cache")]  # fmt: skip
    ended = launched([*words, *(w for s in SETTINGS for w in ("--set", s))])
    assert [e.returncode for e in ended] == [0, 0], ended[0].stderr[-2000:] + ended[1].stderr[-2000:]
    assert ended[1].stdout == "", "only rank 0 prints"

    killed: list[int] = []

    def kill() -> None:
        rows = tmp_path / "ray" / "metrics.jsonl"
        while not (rows.is_file() and '"tune"' in rows.read_text()):
            time.sleep(0.01)
        worker = training_workers()[-1]
        os.kill(worker.pid, signal.SIGKILL)
        killed.append(worker.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = cleantune.fit(
        tmp_path / "data.parquet", tmp_path / "model", out=tmp_path / "ray", workers=2, quiet=True, **common
    )
    thread.join(5)
    assert killed
    by_ray, by_torchrun = tmp_path / "ray", tmp_path / "torchrun"
    assert (by_ray / "labels.parquet").read_bytes() == (by_torchrun / "labels.parquet").read_bytes()
    summary = json.loads((by_torchrun / "summary.json").read_text())
    for part in ("accuracy", "noise", "issues"):
        assert result.summary[part] == summary[part]
    assert {p.name for p in by_ray.iterdir()} == {p.name for p in by_torchrun.iterdir()}, "Ray leaves no file"


def test_user_errors_of_workers_are_raised_here(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", features=np.ones((40, 3), np.float32), label=np.arange(40) % 2)
    with pytest.raises(UserError, match="only --scope head"):
        cleantune.fit(tmp_path / "data.npz", method="ce", scope="all", out=tmp_path / "run", workers=2, quiet=True)
    with pytest.raises(UserError, match="the Ray cluster has 2 CPUs"):
        cleantune.fit(tmp_path / "data.npz", method="ce", out=tmp_path / "big", workers=5, quiet=True)
