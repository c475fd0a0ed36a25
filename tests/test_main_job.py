"""The main job from data to report, on a tiny model and a few images, texts or embeddings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import save_tiny

import cleantune
from cleantune.config.run import configure
from cleantune.data.image_cache import Decoder
from cleantune.errors import UserError
from cleantune.features.precision import Precision
from cleantune.pipeline import inputs
from cleantune.pipeline.resolve import resolve
from cleantune.utils.console import Console

QUICK = {
    "method.probe.epochs": 3, "method.probe.min_steps": 0, "method.tune.epochs": 2, "method.tune_visits": 1.0,
}  # fmt: skip


QUICK_PROBE = {"method.probe.epochs": 2, "method.probe.min_steps": 0}


def colors(folder: Path, count: int = 90, *, bad: int = 0) -> Path:
    """A table of noisy one-color images in three classes, with ids, labels and true labels; some are no images."""
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        c = i % 3
        pixels = rng.integers(0, 90, (24, 24, 3))
        pixels[..., c] += 120
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = b"broken" if i < bad else file.getvalue()
        given = int(rng.integers(3)) if i % 5 == 0 else c
        rows.append(
            {"id": f"image-{i}", "image": {"bytes": data, "path": None}, "label": "rgb"[given], "true": "rgb"[c]}
        )
    path = folder / "colors.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> cleantune.Result:
    """One run by the default method."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny("resnet", folder / "model")
    return cleantune.fit(
        colors(folder), folder / "model", out=folder / "out", true_label="true", test_fraction=0.2, seed=1,
        settings=QUICK, quiet=True, precision="float32",
    )  # fmt: skip


def test_a_run_leaves_every_file_that_is_promised(run: cleantune.Result) -> None:
    names = ("config.toml", "metrics.jsonl", "summary.json", "labels.parquet", "labels.csv", "report.html")
    assert all((run.path / name).stat().st_size > 0 for name in names)
    assert (run.path / "model").is_dir()
    assert not [p for p in run.path.rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]


def test_every_sample_of_train_and_validation_is_listed_once_worst_first(run: cleantune.Result) -> None:
    samples, labels = run.summary["samples"], run.labels
    assert len(labels) == samples["train"] + samples["validation"] == 72
    assert labels["id"].is_unique
    assert labels["label_score"].is_monotonic_increasing
    assert labels["label_score"].between(0, 1).all()
    assert set(labels["given_label"]) == {"r", "g", "b"}


def test_the_cost_is_that_of_the_formula(run: cleantune.Result) -> None:
    """One look to extract, three for each visit of the budget, one before each later probe."""
    train = run.summary["samples"]["train"]
    assert abs(run.summary["cost"]["forward_passes"] / train - (1 + 3 * 1.0 + 2)) < 0.1


def test_a_reopened_model_predicts_what_the_run_measured(run: cleantune.Result) -> None:
    data = pd.read_parquet(run.path.parent / "colors.parquet")
    predicted = run.model.predict(run.path.parent / "colors.parquet", id="id", image="image")
    test = ~data["id"].isin(run.labels["id"])
    assert (predicted[test] == data["true"][test]).mean() == pytest.approx(run.summary["accuracy"]["test"])


def test_the_native_export_opens_in_a_pipeline_of_transformers_to_the_same_probabilities(run: cleantune.Result) -> None:
    from transformers import pipeline

    data = pd.read_parquet(run.path.parent / "colors.parquet").head(4)
    images = [Image.open(io.BytesIO(cell["bytes"])) for cell in data["image"]]
    theirs = pipeline("image-classification", model=str(run.path / "model"), top_k=None)(images)
    ours = run.model.predict_proba(images)
    for row, answers in zip(ours, theirs, strict=True):
        expected = [next(a["score"] for a in answers if a["label"] == name) for name in run.summary["class_names"]]
        np.testing.assert_allclose(row, expected, atol=2e-3)


@pytest.mark.parametrize("trains", [True, False])
def test_a_processor_decodes_what_learns_before_its_features_are_made(
    trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "select_precisions", lambda *_: (Precision(), Precision()))
    table = {
        "data": {"data": str(colors(tmp_path)), "test_fraction": 0.22},
        "model": {"model": str(save_tiny("resnet", tmp_path / "model")), "device": "cpu"},
        "run": {"cache": str(tmp_path / "cache")},
    }
    config, quiet, found, own = configure(table), Console(quiet=True), [], Decoder.fill
    read: list[int] = []
    monkeypatch.setattr(Decoder, "fill", lambda decoder, out, rows: read.extend(rows) or own(decoder, out, rows))
    extracted = inputs.extract

    def extract(backbone: Any, ready: Any, *given: Any, **named: Any) -> Any:
        found.append(len(ready) - len(read))
        made = extracted(backbone, ready, *given, **named)
        read.clear()
        return made

    monkeypatch.setattr(inputs, "extract", extract)
    run = resolve(config, quiet)
    data = run.data
    sizes = [len(rows) for rows in data.rows.values()]
    made = inputs.prepare_inputs(config, data, run.backbone, quiet, trains_backbone=trains)
    assert [len(f) for f in made.features.values()] == sizes
    assert found == ([0] * len(sizes) if trains else sizes)


def test_features_come_in_the_order_of_the_ids(run: cleantune.Result) -> None:
    ids = run.labels["id"].tolist()
    some = run.model.features(ids=[ids[5], ids[2]])
    every = run.model.features(ids=ids)
    np.testing.assert_array_equal(some, every[[5, 2]])
    with pytest.raises(UserError, match="no row with the id 'nobody'"):
        run.model.features(ids=["nobody"])


def test_a_config_alone_repeats_the_run(run: cleantune.Result, tmp_path: Path) -> None:
    again = cleantune.fit(config=run.path / "config.toml", out=tmp_path / "again", quiet=True)
    assert (again.path / "labels.parquet").read_bytes() == (run.path / "labels.parquet").read_bytes()


def test_true_labels_move_no_bit_of_model_or_scores(run: cleantune.Result, tmp_path: Path) -> None:
    blind = cleantune.fit(config=run.path / "config.toml", out=tmp_path / "blind", quiet=True, true_label="label")
    columns = ["id", "label_score", "p_clean", "suggested_label"]
    pd.testing.assert_frame_equal(blind.labels[columns], run.labels[columns])
    for path in (run.path / "model").glob("*.safetensors"):
        assert path.read_bytes() == (blind.path / "model" / path.name).read_bytes()


def test_a_finished_run_is_not_run_again_and_other_settings_are_refused_by_name(run: cleantune.Result) -> None:
    before = (run.path / "summary.json").stat().st_mtime_ns
    cleantune.fit(out=run.path, resume=True, quiet=True)
    assert (run.path / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"run\.noise_seed|run\.train_seed|data\.split_seed"):
        cleantune.fit(out=run.path, resume=True, quiet=True, seed=7)


def test_unreadable_images_are_named_counted_and_left_out_up_to_the_limit(tmp_path: Path) -> None:
    save_tiny("resnet", tmp_path / "model")
    table, said = colors(tmp_path, 60, bad=2), {"label": "label", "quiet": True, "settings": QUICK}
    with pytest.raises(UserError, match=r"2 of 60 samples cannot be read.*--max-unreadable"):
        cleantune.fit(table, tmp_path / "model", out=tmp_path / "no", **said)
    result = cleantune.fit(table, tmp_path / "model", out=tmp_path / "yes", max_unreadable=0.1, **said)
    assert result.summary["samples"]["unreadable"] == 2
    bad = pd.read_csv(result.path / "artifacts" / "unreadable_samples.csv")
    assert set(bad["id"]) == {"image-0", "image-1"}
    assert not set(bad["id"]) & set(result.labels["id"])


def embeddings(N: int = 800, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 4
    return (rng.normal(size=(N, 16)) + 4 * np.eye(16)[y]).astype(np.float32), y


@pytest.mark.parametrize("method", ["robust", "ce", "gce"])
def test_embeddings_are_enough(method: str, tmp_path: Path) -> None:
    f, y = embeddings()
    result = cleantune.fit(
        {"features": f, "label": y}, out=tmp_path / "run", method=method, noise="symmetric:0.3", test_fraction=0.2,
        quiet=True,
    )  # fmt: skip
    assert result.summary["scope"] == "head"
    assert result.summary["accuracy"]["test"] > 0.9
    assert result.summary["issues"]["auroc"] > 0.9
    assert (result.model.predict(f) == y).mean() > 0.9
    with pytest.raises(UserError, match="the features have 5 dimensions, the model takes 16"):
        result.model.predict(f[:, :5])


def test_overwrite_makes_the_run_anew_and_spares_it_where_the_new_one_cannot_begin(tmp_path: Path) -> None:
    f, y = embeddings()
    out = tmp_path / "run"

    def again(method: str, label: str = "label") -> cleantune.Result:
        return cleantune.fit(
            {"features": f, "label": y}, out=out, method=method, label=label, overwrite=True, quiet=True,
            settings=QUICK_PROBE,
        )  # fmt: skip

    assert again("ce").summary["method"] == "ce"
    (out / "left").write_text("by the run before")
    with pytest.raises(UserError, match="lable"):
        again("gce", "lable")
    assert (out / "left").is_file()
    assert cleantune.Result(out, json.loads((out / "summary.json").read_text())).summary["method"] == "ce"
    assert again("gce").summary["method"] == "gce"
    assert not (out / "left").exists()


def test_rows_without_a_label_are_counted_and_predicted(tmp_path: Path) -> None:
    save_tiny("resnet", tmp_path / "model")
    table = colors(tmp_path, 60)
    frame = pd.read_parquet(table)
    frame.loc[:6, "label"] = None
    frame.to_parquet(table)
    result = cleantune.fit(
        table, tmp_path / "model", out=tmp_path / "run", label="label", method="ce", settings=QUICK_PROBE, quiet=True
    )
    predicted = pd.read_parquet(tmp_path / "run" / "unlabeled.parquet")
    assert result.summary["samples"]["unlabeled"] == 7
    assert predicted["id"].tolist() == [f"image-{i}" for i in range(7)]
    assert not set(predicted["id"]) & set(result.labels["id"])
    assert predicted["probability"].between(1 / 3, 1).all()
