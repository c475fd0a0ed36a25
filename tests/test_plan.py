"""Estimate of a run: forward passes, disk and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import save_tiny

from cleantune.backbones import ImagePreprocess, open_backbone
from cleantune.cli.main import cli
from cleantune.data.images import encode_png
from cleantune.errors import UserError
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.fit import plan
from cleantune.pipeline.plan import RESERVED_BYTES, RunEstimate, estimate_run
from cleantune.pipeline.resolve import configure_arguments, resolve
from cleantune.utils.console import Console

ROWS, WIDTH = 60, 16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of sixty images in three classes."""
    rng = np.random.default_rng(0)
    cells = [encode_png(Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))) for _ in range(ROWS)]
    path = tmp_path_factory.mktemp("data") / "images.parquet"
    pd.DataFrame({"image": cells, "label": [i % 3 for i in range(ROWS)]}).to_parquet(path)
    return path


@pytest.fixture
def estimate(images: Path, tmp_path: Path) -> Any:
    """A function that estimates a run on the images with a tiny model."""
    model = save_tiny("resnet", tmp_path / "m")

    def run(method: str, scope: str, **options: Any) -> RunEstimate:
        arguments = FitArguments(
            data=str(images), model=str(model), method=method, scope=scope,
            options={"cache": str(tmp_path / "c")} | options,
        )  # fmt: skip
        return estimate_run(resolve(configure_arguments(arguments), Console(quiet=True)), budget=0.2)

    return run


def test_estimate_counts_forward_passes_and_disk(estimate: Any, tmp_path: Path) -> None:
    tuned, probe = estimate("ce", "all"), estimate("gce", "head")
    assert tuned.workload.train + tuned.workload.validation == ROWS
    assert tuned.cost.num_trained == 5 * tuned.workload.train
    assert tuned.training_seconds > 0
    assert probe.cost.forward_passes == tuned.workload.train
    assert probe.disk_bytes < tuned.disk_bytes
    in_float32 = estimate("gce", "head", feature_dtype="float32")
    assert in_float32.disk_bytes - probe.disk_bytes == 2 * ROWS * WIDTH


def test_estimate_caches_no_features(estimate: Any, tmp_path: Path) -> None:
    estimate("gce", "head")
    assert not list((tmp_path / "c").glob("features-*"))


def test_estimated_memory_is_pixels_features_and_training_state(
    estimate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cleantune.pipeline.plan.peak_bytes", lambda: 0)
    tuned, probe = estimate("ce", "all"), estimate("ce", "head")
    backbone = open_backbone(str(tmp_path / "m"))
    weights = sum(p.numel() for p in backbone.parameters())
    assert tuned.memory_bytes - probe.memory_bytes == 4 * ROWS * WIDTH + 3 * 4 * weights
    assert isinstance(backbone.preprocess, ImagePreprocess)
    height, width = backbone.preprocess.size
    assert probe.memory_bytes == RESERVED_BYTES + 3 * ROWS * height * width + 2 * ROWS * WIDTH


def test_plan_of_features_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cleantune.pipeline.throughput.BUDGET", 0.2)
    path = tmp_path / "f.npz"
    np.savez(path, features=np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32), label=np.arange(90) % 3)
    shown = CliRunner().invoke(cli, ["plan", str(path), "--method", "gce", "--scope", "head"])
    assert shown.exit_code == 0, shown.output
    for word in ("samples", "81 training", "forward passes", "training", "disk", "memory"):
        assert word in shown.output


def test_plan_without_data_is_refused() -> None:
    with pytest.raises(UserError, match="no data"):
        plan()
