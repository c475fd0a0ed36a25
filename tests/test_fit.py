"""The main job from data to report, on a tiny model and a few images or embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUICK, QUICK_PROBE, color_table, embeddings
from tiny import save_tiny

import cleantune
from cleantune.errors import UserError
from cleantune.pipeline.fit import Result
from cleantune.storage.run_dir import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of the default method."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny("resnet", folder / "model")
    return cleantune.fit(
        color_table(folder), folder / "model", out=folder / "out", true_label="true", test_fraction=0.2, seed=1,
        settings=QUICK, quiet=True, precision="float32",
    )  # fmt: skip


def test_run_writes_every_promised_file(run: Result) -> None:
    names = ("config.toml", "metrics.jsonl", "summary.json", "labels.parquet", "labels.csv", "report.html")
    assert all((run.path / name).stat().st_size > 0 for name in names)
    assert (run.path / "model").is_dir()
    assert (run.path / "artifacts").is_dir()
    assert not [p for p in run.path.rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]


@pytest.mark.parametrize(
    "path",
    [
        "method", "scope", "seed", "classes", "samples.train", "samples.validation", "samples.test",
        "samples.unreadable", "accuracy.test", "accuracy.validation", "balanced_accuracy.test",
        "balanced_accuracy.validation", "noise.estimated_rate", "noise.true_rate", "selection.purity",
        "selection.recall", "selection.auroc", "cost.forward_passes", "cost.training_samples", "cost.optimizer_steps",
        "cost.peak_bytes", "cost.seconds.extract", "cost.seconds.probe", "cost.seconds.score", "cost.seconds.tune",
        "cost.seconds.total", "selected_model", "selection_reason",
    ],
)  # fmt: skip
def test_summary_has_the_promised_keys(run: Result, path: str) -> None:
    assert RunDir.read(run.path).get(path) is not None


def test_labels_list_every_labeled_sample_once_worst_first(run: Result) -> None:
    samples, labels = run.summary["samples"], run.labels
    assert len(labels) == samples["train"] + samples["validation"] == 72
    assert labels["id"].is_unique
    assert labels["label_score"].is_monotonic_increasing
    assert labels["label_score"].between(0, 1).all()
    assert set(labels["given_label"]) == {"r", "g", "b"}


def test_balanced_accuracy_is_the_mean_recall_of_the_classes(run: Result) -> None:
    data = pd.read_parquet(run.path.parent / "colors.parquet")
    test = data[~data["id"].isin(run.labels["id"])]
    predicted = run.model.predict([*_images(test)])
    recalls = [(predicted[(test["true"] == c).to_numpy()] == c).mean() for c in sorted(set(test["true"]))]
    assert run.summary["balanced_accuracy"]["test"] == pytest.approx(np.mean(recalls))


def _images(table: pd.DataFrame) -> list[object]:
    import io

    from PIL import Image

    return [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"]]


def test_cost_counts_extraction_visits_and_scoring(run: Result) -> None:
    """Extraction costs a pass, each training visit three, and each later probe one."""
    train = run.summary["samples"]["train"]
    assert abs(run.summary["cost"]["forward_passes"] / train - (1 + 3 * 1.0 + 2)) < 0.1


def test_config_alone_repeats_the_run(run: Result, tmp_path: Path) -> None:
    again = cleantune.fit(config=run.path / "config.toml", out=tmp_path / "again", quiet=True)
    assert (again.path / "labels.parquet").read_bytes() == (run.path / "labels.parquet").read_bytes()


def test_true_labels_change_no_bit_of_model_and_scores(run: Result, tmp_path: Path) -> None:
    blind = cleantune.fit(config=run.path / "config.toml", out=tmp_path / "blind", quiet=True, true_label="label")
    columns = [name for name in run.labels if name != "true_label"]
    pd.testing.assert_frame_equal(blind.labels[columns], run.labels[columns])
    for path in (run.path / "model").glob("*.safetensors"):
        assert path.read_bytes() == (blind.path / "model" / path.name).read_bytes()


def test_finished_run_is_returned_as_it_is(run: Result) -> None:
    before = (run.path / "summary.json").stat().st_mtime_ns
    assert cleantune.fit(out=run.path, resume=True, quiet=True).summary == run.summary
    assert (run.path / "summary.json").stat().st_mtime_ns == before


def test_resume_with_other_settings_is_refused_by_name(run: Result) -> None:
    with pytest.raises(UserError, match=r"run\.noise_seed|run\.train_seed|data\.split_seed"):
        cleantune.fit(out=run.path, resume=True, quiet=True, seed=7)


@pytest.mark.parametrize("method", ["robust", "ce", "gce"])
def test_fit_on_embeddings(method: str, tmp_path: Path) -> None:
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


def test_overwrite_keeps_the_earlier_run_if_the_new_cannot_start(tmp_path: Path) -> None:
    f, y = embeddings()
    out = tmp_path / "run"

    def fit(method: str, label: str = "label") -> Result:
        return cleantune.fit(
            {"features": f, "label": y}, out=out, method=method, label=label, overwrite=True, quiet=True,
            settings=QUICK_PROBE,
        )  # fmt: skip

    assert fit("ce").summary["method"] == "ce"
    (out / "extra").write_text("from the earlier run")
    with pytest.raises(UserError, match="lable"):
        fit("gce", "lable")
    assert (out / "extra").is_file()
    assert json.loads((out / "summary.json").read_text())["method"] == "ce"
    assert fit("gce").summary["method"] == "gce"
    assert not (out / "extra").exists()


def test_rows_without_a_label_are_counted_and_predicted(tmp_path: Path) -> None:
    save_tiny("resnet", tmp_path / "model")
    table = color_table(tmp_path, 60)
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
