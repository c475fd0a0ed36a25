"""The model of a finished run: predictions and features."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUICK_PROBE, color_table
from PIL import Image
from tiny import save_tiny

import cleantune
from cleantune.errors import UserError
from cleantune.pipeline.fit import Result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of fine-tuning by cross-entropy."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny("resnet", folder / "model")
    return cleantune.fit(
        color_table(folder), folder / "model", out=folder / "out", true_label="true", test_fraction=0.2,
        method="ce", scope="all", settings={"method.tune.epochs": 2}, quiet=True, precision="float32",
    )  # fmt: skip


def test_loaded_model_has_the_accuracy_of_the_summary(run: Result) -> None:
    data = pd.read_parquet(run.path.parent / "colors.parquet")
    predicted = run.model.predict(run.path.parent / "colors.parquet", id="id", image="image")
    test = ~data["id"].isin(run.labels["id"])
    assert (predicted[test] == data["true"][test]).mean() == pytest.approx(run.summary["accuracy"]["test"])


def test_transformers_pipeline_predicts_the_same_probabilities(run: Result) -> None:
    from transformers import pipeline

    data = pd.read_parquet(run.path.parent / "colors.parquet").head(4)
    images = [Image.open(io.BytesIO(cell["bytes"])) for cell in data["image"]]
    theirs = pipeline("image-classification", model=str(run.path / "model"), top_k=None)(images)
    ours = run.model.predict_proba(images)
    for row, answers in zip(ours, theirs, strict=True):
        expected = [next(a["score"] for a in answers if a["label"] == name) for name in run.summary["class_names"]]
        np.testing.assert_allclose(row, expected, atol=2e-3)


def test_features_follow_the_order_of_the_ids(run: Result) -> None:
    ids = run.labels["id"].tolist()
    two = run.model.features(ids=[ids[5], ids[2]])
    np.testing.assert_array_equal(two, run.model.features(ids=ids)[[5, 2]])
    with pytest.raises(UserError, match="no row with the id 'nobody'"):
        run.model.features(ids=["nobody"])


def test_features_need_the_folder_of_the_run(run: Result) -> None:
    with pytest.raises(UserError, match="open the run's folder"):
        cleantune.load(run.path / "model").features()


def test_unreadable_images_are_refused(run: Result, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of 6 samples cannot be read, the first is"):
        run.model.predict(color_table(tmp_path, 6, unreadable=2), image="image")


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run .*nowhere"):
        cleantune.load(tmp_path / "nowhere")


def test_result_loads_the_model_of_a_probe(tmp_path: Path) -> None:
    save_tiny("resnet", tmp_path / "model")
    table = color_table(tmp_path, 60)
    result = cleantune.fit(
        table, tmp_path / "model", out=tmp_path / "run", label="label", method="ce", settings=QUICK_PROBE, quiet=True
    )
    assert set(result.model.predict(table, image="image")) <= {"r", "g", "b"}
