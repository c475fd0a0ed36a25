"""Search and workers on Ray: one session of two CPUs for all."""

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

pytest.importorskip("ray")
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("ignore")]


def embeddings(path: Path, size: int = 240) -> Path:
    """Features in three clusters, one label in four wrong."""
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


def test_a_search_ends_with_a_table_a_config_and_a_page_and_its_rows_are_those_of_fit(tmp_path: Path) -> None:
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
    kept = (done.path / "trials" / "0003" / "trial.json").stat().st_mtime_ns
    (lost / "trial.json").unlink()
    (done.path / "trials" / "0001" / "trial.json").rename(done.path / "trials" / "0001" / "failed.json")
    resumed = quick_search(tmp_path, resume=True)
    pd.testing.assert_series_equal(resumed.trials["objective"], frame["objective"])
    assert (done.path / "trials" / "0003" / "trial.json").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="the points of this search are not what"):
        quick_search(tmp_path, resume=True, trials=3)


def test_a_failed_trial_is_shown_and_survived(tmp_path: Path) -> None:
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


def test_fine_tuning_is_searched_by_asha_and_losers_stop_early(tmp_path: Path) -> None:
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


def test_features_streamed_by_ray_data_are_those_of_fit_and_are_found_by_it(tmp_path: Path) -> None:
    from cleantune.features.cache import find_features
    from cleantune.pipeline.arguments import FitArguments
    from cleantune.pipeline.ray_extract import extract_all
    from cleantune.pipeline.resolve import configure_arguments

    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    made = {}
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
        made[who] = {path.name.split("-")[1] for path in (tmp_path / who).glob("features-*")}
    assert made["streamed"] == made["fitted"], "fit has made none of its own"
    for key in made["fitted"]:
        one, other = find_features(tmp_path / "streamed", key), find_features(tmp_path / "fitted", key)
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def training_workers() -> list[psutil.Process]:
    """Ray's training workers, by Ray's own name for them."""
    return [p for p in psutil.process_iter(["cmdline"]) if "TrainWorker" in " ".join(p.info["cmdline"] or [])]


def test_a_killed_worker_is_replaced_and_the_run_ends_with_the_bytes_of_two_undisturbed_ranks(tmp_path: Path) -> None:
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
    assert ended[1].stdout == "", "one rank speaks"

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
    mine, other = tmp_path / "ray", tmp_path / "torchrun"
    assert (mine / "labels.parquet").read_bytes() == (other / "labels.parquet").read_bytes()
    told = json.loads((other / "summary.json").read_text())
    for part in ("accuracy", "noise", "issues"):
        assert result.summary[part] == told[part]
    assert {p.name for p in mine.iterdir()} == {p.name for p in other.iterdir()}, "nothing of Ray is left behind"


def test_what_a_worker_refuses_is_one_sentence_here(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", features=np.ones((40, 3), np.float32), label=np.arange(40) % 2)
    with pytest.raises(UserError, match="only --scope head"):
        cleantune.fit(tmp_path / "data.npz", method="ce", scope="all", out=tmp_path / "run", workers=2, quiet=True)
    with pytest.raises(UserError, match="the Ray cluster has 2 CPUs"):
        cleantune.fit(tmp_path / "data.npz", method="ce", out=tmp_path / "big", workers=5, quiet=True)
