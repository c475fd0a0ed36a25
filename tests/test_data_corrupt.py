"""Corruption: train and validation alone, truth kept apart, and files that read back as they were written."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cleantune.config.data import DataConfig
from cleantune.data import corrupt, load, write_corrupted, write_swapped_captions
from cleantune.errors import UserError

TEXTS = [f"text {i}" for i in range(300)]
LABELS = ["abc"[i % 3] for i in range(300)]
SPLIT = ["train"] * 200 + ["val"] * 50 + ["test"] * 50


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": LABELS, "split": SPLIT, "extra": range(300), **columns})


def test_corrupt_changes_train_and_validation_only():
    data = load(DataConfig(frame()))
    before = {split: rows.y.copy() for split, rows in data.rows.items()}
    noisy, measured = corrupt(data, "symmetric:0.6,include_self=false", 0)
    for split in ("train", "validation"):
        assert (noisy.truth[split] == before[split]).all()
        assert (data.rows[split].y == before[split]).all()
        assert 0.4 < (noisy.rows[split].y != before[split]).mean() < 0.8
    assert (noisy.rows["test"].y == before["test"]).all()
    wrong = sum((noisy.rows[s].y != before[s]).sum() for s in ("train", "validation"))
    assert measured["rate"] == wrong / 250
    assert sum(measured["class_histogram"].values()) == 250
    assert set(measured["class_purity"]) == {"a", "b", "c"}
    assert measured["noise"] == "symmetric:0.6,include_self=false"
    assert noisy.fingerprint != data.fingerprint


def test_corrupt_by_none_adds_no_truth():
    data = load(DataConfig(frame()))
    same, measured = corrupt(data, "none", 0)
    assert same is data
    assert not same.truth
    assert measured == {"noise": "none", "seed": 0}


def test_corrupt_keeps_known_true_labels():
    given = LABELS[1:] + LABELS[:1]
    data = load(DataConfig(frame(given=given), label="given", true_label="label"))
    noisy, measured = corrupt(data, "pair:0.0", 0)
    assert (noisy.truth["train"] == data.truth["train"]).all()
    assert measured["rate"] == 1.0


def test_corrupt_is_determined_by_its_seed():
    data = load(DataConfig(frame()))
    one, two, other = (corrupt(data, "symmetric:0.5", seed)[0].rows["train"].y for seed in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()


def test_instance_noise_reads_samples_and_refuses_text():
    rng = np.random.default_rng(0)
    features = load(DataConfig((rng.normal(size=(300, 5)), np.arange(300) % 3)))
    assert corrupt(features, "instance:0.4", 0)[1]["rate"] == pytest.approx(0.4, abs=0.1)
    pictures = [rng.integers(0, 255, (8 + i % 2, 8, 3), dtype=np.uint8) for i in range(60)]
    images = load(DataConfig({"image": pictures, "label": np.arange(60) % 3}))
    assert corrupt(images, "instance:0.4,kind=pdn", 0)[1]["rate"] > 0.2
    with pytest.raises(UserError, match="for text take"):
        corrupt(load(DataConfig(frame())), "instance:0.4", 0)


@pytest.mark.parametrize("end", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_write_corrupted_changes_labels_only(tmp_path, end):
    source = tmp_path / "source.parquet"
    frame().to_parquet(source)
    out = tmp_path / "deep" / f"noisy{end}"
    measured = write_corrupted(DataConfig(source), "symmetric:0.6", 0, out)
    data = load(DataConfig(out, true_label="true_label"))
    assert len(data.rows["train"]) == 200
    for split, labels in (("train", LABELS[:200]), ("validation", LABELS[200:250]), ("test", LABELS[250:])):
        assert [data.classes[t] for t in data.truth[split]] == labels
    wrong = [(data.rows[s].y != data.truth[s]).sum() for s in ("train", "validation", "test")]
    assert sum(wrong) / 250 == measured["rate"]
    assert wrong[2] == 0
    assert list(tmp_path.joinpath("deep").iterdir()) == [out]
    if end == ".parquet":
        written = pd.read_parquet(out)
        assert list(written.columns) == ["text", "label", "split", "extra", "true_label"]
        assert written["extra"].tolist() == list(range(300))


def test_write_corrupted_relocates_image_paths(tmp_path):
    for place in ("train/a", "train/b", "test/a"):
        (tmp_path / "in" / place).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / "in" / place / f"{i}.png")
    write_corrupted(DataConfig(tmp_path / "in"), "pair:0.5", 0, tmp_path / "out" / "t.parquet")
    data = load(DataConfig(tmp_path / "out" / "t.parquet", true_label="true_label"))
    assert {s: len(r) for s, r in data.rows.items()} == {"train": 18, "validation": 2, "test": 10}
    assert data.rows["test"].samples.read([3])[0].getpixel((0, 0)) == (3, 3, 3)


def test_write_corrupted_keeps_features_and_checks_formats(tmp_path):
    f = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    write_corrupted(DataConfig((f, np.arange(30) % 3)), "symmetric:0.5", 0, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as file:
        np.testing.assert_array_equal(file["features"], f)
        assert (file["true_label"] == np.arange(30) % 3).all()
        assert (file["label"] != file["true_label"]).any()
    for name, word in (("t.npz", "features only"), ("t.xyz", ".parquet"), ("t", "without a suffix")):
        with pytest.raises(UserError, match=word):
            write_corrupted(DataConfig(frame()), "symmetric:0.5", 0, tmp_path / name)
    with pytest.raises(UserError, match=r"write \.parquet"):
        write_corrupted(DataConfig((f, np.arange(30) % 3)), "symmetric:0.5", 0, tmp_path / "f.csv")


def test_swapped_captions_keep_the_right_ones_in_a_column(tmp_path):
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(50)], "caption": [f"caption {i}" for i in range(50)]})
    source, out = tmp_path / "pairs.csv", tmp_path / "elsewhere" / "noisy.csv"
    table.to_csv(source, index=False)
    share = write_swapped_captions(source, "captions:0.3", "caption", out, image="image", seed=1)
    read = pd.read_csv(out)
    assert share == 15 / 50
    assert (read["caption"] != read["true_caption"]).sum() == 15
    assert read["true_caption"].tolist() == table["caption"].tolist()
    assert sorted(read["caption"]) == sorted(table["caption"])
    assert read["image"].tolist() == [f"../{i}.png" for i in range(50)]


@pytest.mark.parametrize(
    ("noise", "column", "words"), [("captions:2", "caption", "no rate"), ("captions:0.1", "captoin", "caption")]
)
def test_swapped_captions_refuse_wrong_rate_and_column(tmp_path, noise, column, words):
    source = tmp_path / "pairs.csv"
    pd.DataFrame({"image": ["a", "b"], "caption": ["x", "y"]}).to_csv(source, index=False)
    with pytest.raises(UserError, match=words):
        write_swapped_captions(source, noise, column, tmp_path / "out.csv")
