"""Tests of resuming: killed runs end bitwise identically to uninterrupted ones."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny

import cleantune
from cleantune.pipeline.finished_run import Baseline
from cleantune.utils.console import Console

SETTINGS = (
    "method.probe.epochs=3",
    "method.probe.batch_size=16",
    "method.tune.batch_size=16",
    "method.tune_visits=1.0",
)
ROWS = 3 + 1 + 1 + 3
"""Epochs of these settings: a probe, and two rounds of tuning with a probe at the end."""


def pictures(path: Path) -> Path:
    """Write 120 small images in three classes by color, a fifth of the labels wrong, with the true labels."""
    rng = np.random.default_rng(0)
    colors = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    true = np.arange(120) % 3
    given = np.where(rng.random(120) < 0.2, (true + 1) % 3, true)
    cells = []
    for c in true:
        file = io.BytesIO()
        noisy = colors[c] + rng.integers(-50, 50, (24, 24, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        cells.append(file.getvalue())
    pq.write_table(pa.table({"image": cells, "label": given, "truth": true}), path)
    return path


def command(folder: Path, out: str, *more: str) -> list[str]:
    """Return the command line of a run on the images, with its own cache."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return [sys.executable, "-m", "cleantune", "fit", str(folder / "data.parquet"), "--model", str(folder / "model"),
            "--label", "label", "--true-label", "truth", "--out", str(folder / out), "--precision", "float32",
            "--device", "cpu", "--cache", str(folder / f"cache-{out}"), *sets, *more]  # fmt: skip


def rows_in(folder: Path) -> int:
    """Return the number of complete rows on disk."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed(line: list[str], reached: Callable[[], bool], delay: float) -> int:
    """Start a run, kill it shortly after it reached a point, and return its exit status."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while process.poll() is None and not reached() and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def test_run_killed_five_times_resumes_bitwise_identically(tmp_path: Path) -> None:
    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(command(tmp_path, "whole"), env=environment, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert rows_in(tmp_path / "whole") == ROWS

    rng, out = random.Random(7), tmp_path / "torn"
    # The first kill falls into extraction, the others behind a row of every kind of phase.
    extracting = killed(command(tmp_path, "torn"), lambda: any((tmp_path / "cache-torn").glob("features-*")), 0)
    assert extracting == -signal.SIGKILL
    moments = sorted(rng.sample(range(1, ROWS), 4))
    for count in moments:
        status = killed(command(tmp_path, "torn", "--resume"), lambda n=count: rows_in(out) >= n, rng.random() * 0.02)
        assert status == -signal.SIGKILL, f"killed at row {count}: ended by itself with {status}"
        assert not (out / "summary.json").exists()
    last = subprocess.run(
        command(tmp_path, "torn", "--resume"), env=environment, capture_output=True, text=True, check=False
    )
    assert last.returncode == 0, last.stderr

    assert rows_in(out) == ROWS
    for name in ("labels.parquet", "labels.csv", *(f"model/{p.name}" for p in (out / "model").glob("*.safetensors"))):
        same = (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert same, f"{name} differs, killed at {moments}"
    assert list((out / "model").glob("*.safetensors"))


class StoppedError(Exception):
    """Raised instead of a kill."""


def stopping_after(count: int) -> Callable[[object, object], None]:
    """Return a method of the console that stops the run at a row."""
    shown = [0]

    def row(self: object, row: object) -> None:
        shown[0] += 1
        if shown[0] == count:
            raise StoppedError

    return row


@pytest.mark.parametrize(("method", "scope"), [("elr", "all"), ("coteaching", "all"), ("unicon", "head")])
def test_ledger_and_both_models_survive_an_interruption(
    method: str, scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = Baseline({"test": None, "validation": 0.5}, 0.0)
    monkeypatch.setattr("cleantune.pipeline.train_run.train_baseline_probe", lambda *_: baseline)
    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    sets = ["method.probe.epochs=3", "method.probe.min_steps=0", "method.tune.epochs=3", "run.cached_augmentations=2"]
    sets += ["method.warm_up_head=1"] if method == "unicon" else []

    def fit(out: str, resume: bool = False) -> Path:
        result = cleantune.fit(
            tmp_path / "data.parquet", tmp_path / "model", out=tmp_path / out, method=method, scope=scope,
            label="label", true_label="truth", precision="float32", device="cpu", cache=str(tmp_path / "cache"),
            settings=sets, resume=resume, quiet=True,
        )  # fmt: skip
        return result.path

    whole = fit("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Console, "row", stopping_after(2))
        with pytest.raises(StoppedError):
            fit("torn")
    torn = fit("torn", resume=True)
    names = ["labels.parquet", "checkpoint/state.safetensors"]
    names += [str(p.relative_to(whole)) for p in (whole / "model").rglob("*.safetensors")]
    assert len(names) == (3 if method == "elr" else 4)
    state = load_file(whole / "checkpoint" / "state.safetensors")
    remembered = {"elr": "elr_target", "coteaching": "coteaching", "unicon": "p_clean"}[method]
    assert f"ledger.{remembered}" in state
    again = load_file(torn / "checkpoint" / "state.safetensors")
    assert state.keys() == again.keys()
    assert not [name for name in state if not torch.equal(state[name], again[name])]
    for name in names:
        if not name.startswith("checkpoint"):  # its counters hold seconds
            assert (whole / name).read_bytes() == (torn / name).read_bytes(), name
