"""Loading: every form of data becomes the same rows, splits are kept apart, bad input is refused in one sentence."""

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cleantune.config.data import DataConfig
from cleantune.data import Data, Rows, UnreadableImage, load, load_unlabeled, tables
from cleantune.errors import UserError

WORDS = ["cat", "dog", "fly"]
TEXTS = [f"text {i}" for i in range(30)]
LABELS = [WORDS[i % 3] for i in range(30)]


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": LABELS, **columns})


def everything(data, **options) -> Data:
    return load(DataConfig(data, validation_fraction=0.0, **options))


def refused(data, **options) -> str:
    with pytest.raises(UserError) as error:
        load(DataConfig(data, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def jpeg(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def image_tree(root, layout: dict[str, int]) -> None:
    for place, count in layout.items():
        folder = root / place
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(jpeg(i))


# ------------------------------------------------------------------------------------------------ forms


def table_in_every_form(tmp_path):
    f = frame()
    f.to_csv(tmp_path / "t.csv", index=False)
    f.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    f.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    f.to_parquet(tmp_path / "t.parquet")
    dataset = datasets.Dataset.from_pandas(f)
    dataset.save_to_disk(tmp_path / "saved")
    return [
        *(tmp_path / f"t{end}" for end in (".csv", ".tsv", ".jsonl", ".parquet")),
        tmp_path / "saved",
        str(tmp_path / "t.csv"),
        dataset,
        f,
        {"text": TEXTS, "label": LABELS},
    ]


def test_load_is_equal_for_every_table_format(tmp_path):
    loaded = [load(DataConfig(form)) for form in table_in_every_form(tmp_path)]
    assert {data.fingerprint for data in loaded} == {loaded[0].fingerprint}
    first = loaded[0]
    assert first.kind == "text"
    assert first.classes == first.class_values == ("cat", "dog", "fly")
    assert {split: len(rows) for split, rows in first.rows.items()} == {"train": 27, "validation": 3}
    train = first.rows["train"]
    for i in range(len(train)):
        row = int(train.ids[i])
        assert train.samples.read([i]) == [TEXTS[row]]
        assert first.classes[train.y[i]] == LABELS[row]
        assert train.samples.describe(i).startswith(f"row {row} of ")


def test_load_reads_vectors_of_an_npz_file_as_columns(tmp_path):
    f, y = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32), np.arange(90) % 3
    np.savez(tmp_path / "f.npz", features=f, labels=y, by_anna=(y + 1) % 3, pred_probs=np.ones((90, 3)), few=y[:5])
    given = [load(DataConfig(tmp_path / "f.npz", label=label)).rows["train"] for label in (None, "labels", "by_anna")]
    for rows, shift in zip(given, (0, 0, 1), strict=True):
        assert all(int(label) == (int(i) + shift) % 3 for i, label in zip(rows.ids, rows.y, strict=True))
    assert "known: by_anna, features, labels" in refused(tmp_path / "f.npz", label="pred_probs")


def test_load_is_equal_for_every_feature_format(tmp_path):
    f = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    y = np.arange(30) % 3
    np.savez(tmp_path / "f.npz", features=f, label=y)
    frame_of_lists = pd.DataFrame({"features": list(f), "label": y})
    for form in (tmp_path / "f.npz", (f, y), {"features": f.astype(np.float64), "label": y}, frame_of_lists):
        data = everything(form)
        assert data.kind == "features"
        assert data.classes == ("0", "1", "2")
        assert data.class_values == (0, 1, 2)
        np.testing.assert_array_equal(data.rows["train"].samples.read(range(30)), f)
        assert data.rows["train"].samples.take(np.array([5, 3])).read([1]).tolist() == [f[3].tolist()]


def test_load_reads_image_folders_with_and_without_splits(tmp_path):
    image_tree(tmp_path / "a", {"train/cat": 4, "train/dog": 4, "val/cat": 1, "test/dog": 2})
    data = load(DataConfig(tmp_path / "a"))
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 8, "validation": 1, "test": 2}
    assert data.rows["train"].ids[0] == "train/cat/0.png"
    assert data.rows["train"].samples.describe(0) == str(tmp_path / "a" / "train/cat/0.png")
    image_tree(tmp_path / "b", {"cat": 4, "dog/deep": 4})
    (tmp_path / "b" / "cat" / "notes.txt").write_text("no picture")
    plain = everything(tmp_path / "b")
    assert plain.rows["train"].ids.tolist()[-1] == "dog/deep/3.png"
    assert any("skipped 1 files" in note for note in plain.notes)
    assert plain.rows["train"].samples.read([3])[0].getpixel((0, 0)) == (3, 3, 3)


def test_load_is_equal_for_every_image_format(tmp_path):
    (tmp_path / "pics").mkdir()
    for i in range(6):
        (tmp_path / "pics" / f"{i}.png").write_bytes(jpeg(i * 10))
    label = ["a", "b"] * 3
    pd.DataFrame({"file_name": [f"pics/{i}.png" for i in range(6)], "label": label}).to_csv(
        tmp_path / "t.csv", index=False
    )
    pd.DataFrame({"image": [jpeg(i * 10) for i in range(6)], "label": label}).to_parquet(tmp_path / "b.parquet")
    structs = [{"bytes": jpeg(i * 10), "path": f"{i}.png"} for i in range(6)]
    pyarrow.parquet.write_table(pa.table({"image": structs, "label": label}), tmp_path / "s.parquet")
    arrays = {"image": np.stack([np.full((8, 8, 3), i * 10, np.uint8) for i in range(6)]), "label": label}
    hub = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8), i * 10) for i in range(6)], "label": label})
    for form in (tmp_path / "t.csv", tmp_path / "b.parquet", tmp_path / "s.parquet", arrays, hub):
        data = everything(form)
        assert data.kind == "image"
        pictures = data.rows["train"].samples.read([5, 0])
        assert [p.getpixel((1, 1))[0] for p in pictures] == [50, 0]
        assert all(p.mode == "RGB" for p in pictures)


def test_read_marks_unreadable_images(tmp_path):
    cells = [jpeg(1), b"broken", None, jpeg(2)]
    data = everything({"image": cells, "label": ["a", "b", "a", "b"]})
    read = data.rows["train"].samples.read(range(4))
    assert [isinstance(picture, UnreadableImage) for picture in read] == [False, True, True, False]
    assert data.rows["train"].samples.describe(1) == "row 1 of the data"


def test_load_keeps_the_order_of_class_label_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "m"])}
    )
    rows = {"text": list("abcdefgh"), "label": [0, 1, 0, 1, 1, 0, -1, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(tmp_path / "c.parquet")
    both = datasets.DatasetDict({"train": dataset, "validation": dataset.select([0, 1]), "unsupervised": dataset})
    for form in (dataset, tmp_path / "c.parquet", both, dataset.select(range(8))):
        data = load(DataConfig(form))
        assert data.classes == ("z", "a")
        assert data.class_values == (0, 1)
        assert len(data.rows["unlabeled"]) == 1
    assert any("unsupervised" in note for note in load(DataConfig(both)).notes)


def test_load_sorts_integer_classes_by_value():
    assert everything({"text": TEXTS, "label": [10, 9, 2] * 10}).class_values == (2, 9, 10)
    assert everything({"text": TEXTS, "label": [True, False] * 15}).class_values == (False, True)


def test_load_keeps_csv_text_as_written(tmp_path):
    lines = ['"a, b"\nc,NA,007', "x,NA,008", "1,yes,009", "2,yes,010"]
    (tmp_path / "t.csv").write_text(
        "\ufefftext,label,id\n" + "\n".join(['"a, b\nc",NA,007', *lines[1:]]) + "\n", encoding="utf-8"
    )
    data = everything(tmp_path / "t.csv")
    assert data.classes == ("NA", "yes")
    assert data.rows["train"].ids.tolist() == ["007", "008", "009", "010"]
    assert data.rows["train"].samples.read([0, 2]) == ["a, b\nc", "1"]


# ------------------------------------------------------------------------------------------------ splits


def test_split_column_divides_rows_and_counts_others():
    split = (["train"] * 20) + ["dev"] * 4 + ["test"] * 3 + ["oos_test"] * 3
    data = load(DataConfig(frame(part=split), split_column="part"))
    assert {s: len(r) for s, r in data.rows.items()} == {"train": 20, "validation": 4, "test": 3}
    assert any('"oos_test" (3)' in note for note in data.notes)
    guessed = load(DataConfig(frame(split=split)))
    assert len(guessed.rows["test"]) == 3
    assert any("--split-column" in note for note in guessed.notes)
    assert "test" not in load(DataConfig(frame(split=split), split_column="")).rows


def test_test_rows_have_true_labels_if_known():
    split = ["train"] * 20 + ["test"] * 10
    noisy = ["cat"] * 15 + ["dog"] * 15
    data = load(DataConfig(frame(noisy=noisy, split=split), label="noisy", true_label="label", split_column="split"))
    assert [data.classes[y] for y in data.rows["test"].y] == LABELS[20:]
    assert set(data.truth) == {"train", "validation", "test"}
    assert data.classes == ("cat", "dog", "fly")
    assert any("only true ones: fly" in note for note in data.notes)
    named = load(DataConfig(frame(noisy=noisy, split=split), label="noisy", true_label="label", test_label="noisy"))
    assert [named.classes[y] for y in named.rows["test"].y] == ["dog"] * 10


def test_rows_without_a_label_form_the_unlabeled_split(tmp_path):
    some = frame(weak=[None if i % 5 == 0 else LABELS[(i + i % 2) % 30] for i in range(30)])
    some.to_csv(tmp_path / "some.csv", index=False)
    for form in (some, tmp_path / "some.csv"):
        data = load(DataConfig(form, label="weak", true_label="label"))
        assert data.rows["unlabeled"].ids.tolist() == [0, 5, 10, 15, 20, 25]
        assert (data.rows["unlabeled"].y == -1).all()
        assert [data.classes[t] for t in data.truth["unlabeled"]] == [LABELS[i] for i in range(0, 30, 5)]
        assert any("6 rows have no label" in note for note in data.notes)


def test_float_labels_with_gaps_are_read_as_integers():
    data = load(DataConfig(pd.DataFrame({"text": TEXTS, "label": [np.nan, 1.0, 2.0] * 10})))
    assert data.class_values == (1, 2)
    assert len(data.rows["unlabeled"]) == 10


def test_clashing_ids_of_files_get_the_split_as_prefix():
    other = frame(id=range(30))
    data = load(DataConfig(frame(id=range(30)), validation=other, test=other))
    assert data.rows["train"].ids[3] == "3"
    assert data.rows["validation"].ids[3] == "validation/3"
    assert data.rows["test"].ids[3] == "test/3"
    alone = load(DataConfig(frame(id=range(30)), test=other))
    assert alone.rows["train"].ids.dtype == np.int64
    assert alone.rows["test"].ids[0] == "test/0"


@settings(max_examples=15)
@given(st.integers(6, 30), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.2]), st.integers(0, 50))
def test_draws_are_disjoint_seeded_and_exact(limit, validation, test, seed):
    spec = DataConfig(frame(), limit=limit, validation_fraction=validation, test_fraction=test, split_seed=seed)
    data = load(spec)
    ids = [i for rows in data.rows.values() for i in rows.ids.tolist()]
    assert len(ids) == len(set(ids))
    pool = 30 - round(30 * test)
    assert sum(len(data.rows[s]) for s in ("train", "validation") if s in data.rows) == min(limit, pool)
    assert load(spec).fingerprint == data.fingerprint
    assert set(data.rows["train"].y.tolist()) == {0, 1, 2}


def test_rows_cannot_reach_a_true_label():
    data = load(DataConfig(frame(noisy=LABELS[1:] + LABELS[:1]), label="noisy", true_label="label"))
    truth = data.truth["train"]

    def reached(value, depth=0) -> bool:
        if isinstance(value, np.ndarray):
            return value.shape == truth.shape and value.dtype == truth.dtype and bool((value == truth).all())
        if depth > 4 or isinstance(value, str | int | bytes):
            return False
        return any(reached(v, depth + 1) for v in getattr(value, "__dict__", {}).values())

    assert not reached(data.rows["train"])
    assert {field.name for field in dataclasses.fields(Rows)} == {"ids", "y", "samples"}


def test_fingerprint_depends_on_content_only():
    one = everything(frame())
    samples = one.rows["train"].samples
    assert samples.take(np.arange(30)).fingerprint == samples.fingerprint
    assert samples.take(np.arange(10)).take(np.array([4])).fingerprint == samples.take(np.array([4])).fingerprint
    assert samples.take(np.array([4])).fingerprint != samples.fingerprint
    chunked = pa.concat_tables([pa.Table.from_pandas(frame()[:11]), pa.Table.from_pandas(frame()[11:])])
    assert everything(datasets.Dataset(chunked)).rows["train"].samples.fingerprint == samples.fingerprint
    assert everything(frame(text=[*TEXTS[:29], "other"])).fingerprint != one.fingerprint
    relabeled = everything(frame(label=[*LABELS[:29], "cat"]))
    assert relabeled.fingerprint != one.fingerprint
    assert relabeled.rows["train"].samples.fingerprint == samples.fingerprint


def test_read_is_thread_safe():
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(100)]
    samples = everything({"image": pictures, "label": [0, 1] * 50}).rows["train"].samples
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: samples.read([i])[0].getpixel((0, 0))[0], range(100)))
    assert read == list(range(100))


def test_large_parquet_file_is_memory_mapped_and_equal(tmp_path, monkeypatch):
    frame().to_parquet(tmp_path / "t.parquet")
    small = everything(tmp_path / "t.parquet").rows["train"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tables, "LARGE_BYTES", 0)
    large = everything(tmp_path / "t.parquet").rows["train"]
    assert large.samples.read(range(30)) == small.samples.read(range(30))
    assert (large.y == small.y).all()
    other_column = everything(tmp_path / "t.parquet", text="label", label="text").rows["train"].samples
    assert len({large.samples.fingerprint, small.samples.fingerprint, other_column.fingerprint}) == 3


# ------------------------------------------------------------------------------------------------ guesses


def test_guessed_columns_are_noted():
    data = everything(pd.DataFrame({"utterance": TEXTS, "intent": LABELS, "other": list(range(30))}))
    assert any('"utterance"' in note for note in data.notes)
    assert any('"intent"' in note for note in data.notes)
    assert everything(frame()).notes == ()


def test_test_copies_of_training_samples_are_counted():
    test = pd.DataFrame({"text": [TEXTS[0], "new", None], "label": ["cat", "dog", "fly"]})
    notes = everything(frame(), test=test).notes
    assert "1 of 3 test samples are exact copies of training samples" in notes
    assert "1 test rows have no text; they are read as empty ones" in notes


# ------------------------------------------------------------------------------------------------ bad input


def test_load_suggests_the_nearest_path_or_column(tmp_path):
    assert "nowhere.csv does not exist" in refused("nowhere.csv")
    frame().to_csv(tmp_path / "train.csv", index=False)
    assert 'did you mean "train.csv"' in refused(tmp_path / "tran.csv")
    assert 'did you mean "label"' in refused(frame(), text="text", label="labl")
    assert 'did you mean "text"' in refused(frame(), text="txt")
    assert "--label" in refused(pd.DataFrame({"text": TEXTS, "what": LABELS}), text="text")
    assert "--image or --text" in refused(pd.DataFrame({"a": TEXTS, "b": TEXTS, "label": LABELS}))
    assert ".xlsx" in refused(_touched(tmp_path / "a.xlsx"))
    assert "--test-label" in refused(frame(), test=frame().drop(columns="label"))
    assert "--test-label" in refused(frame(), test_label="other", test_fraction=0.2)
    assert str(tmp_path / "train.csv") in refused(tmp_path)


def _touched(path):
    path.write_text("x")
    return path


def test_load_refuses_empty_tables_and_folders(tmp_path):
    (tmp_path / "empty.csv").write_text("text,label\n")
    assert "empty.csv is empty" in refused(tmp_path / "empty.csv", text="text", label="label")
    (tmp_path / "void.csv").write_text("")
    assert "empty" in refused(tmp_path / "void.csv")
    assert "empty" in refused(frame()[:0])
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    assert "<class>" in refused(tmp_path / "folder")


def test_load_names_the_place_of_damage(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    assert "line 2" in refused(tmp_path / "t.jsonl")
    (tmp_path / "m.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n')
    assert '"label" mixes int, str' in refused(tmp_path / "m.jsonl")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as Parquet" in refused(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("text,label\na,b,c\n")
    assert "cannot be read as a table" in refused(tmp_path / "t.csv")
    (tmp_path / "d.csv").write_text("text,text\na,b\n")
    assert 'two columns named "text"' in refused(tmp_path / "d.csv")
    np.savez(tmp_path / "p.npz", features=np.array([{}], dtype=object))
    assert "pickled" in refused(tmp_path / "p.npz")
    (tmp_path / "dataset_dict.json").write_text("{")
    assert "save_to_disk" in refused(tmp_path)


def test_load_refuses_one_class_but_not_one_sample():
    assert "one class only" in refused(frame(label=["cat"] * 30))
    data = load(DataConfig(frame(label=["cat"] * 29 + ["owl"]), validation_fraction=0.5))
    assert any("owl" in note for note in data.notes)
    assert data.classes[data.rows["train"].y.max()] == "owl"


def test_load_refuses_unsupported_labels():
    assert "lists of labels" in refused(frame(label=[["a", "b"]] * 30))
    assert "0.5 in row 1" in refused(frame(label=[0.0, 0.5, 1.0] * 10))
    assert 'did you mean "cat"' in refused(frame(), test=frame(label=["catt"] * 30))
    assert "row 4" in refused(frame(), validation=frame(label=[*LABELS[:4], "owl", *LABELS[5:]]))


def test_load_refuses_invalid_features(tmp_path):
    f = np.random.default_rng(0).normal(size=(200, 8)).astype("f4")
    y = np.arange(200) % 2
    np.savez(tmp_path / "one.npz", features=f, label=y * 0)
    assert "class" in refused(tmp_path / "one.npz")
    np.savez(tmp_path / "len.npz", features=f[:50], label=y)
    message = refused(tmp_path / "len.npz")
    assert "50" in message
    assert "200" in message
    f[3, 2] = np.nan
    np.savez(tmp_path / "nan.npz", features=f, label=y)
    assert "row 3 " in refused(tmp_path / "nan.npz")
    f[3, 2] = np.inf
    assert "inf in column 2" in refused((f, y))
    assert "(200,)" in refused((f[:, 0], y))
    ragged = [[1.0, 2.0]] * 29 + [[1.0]]
    assert "row 29 has 1 features, row 0 has 2" in refused(pd.DataFrame({"features": ragged, "label": LABELS}))
    assert "7 features" in refused((f[4:], y[4:]), test=(f[4:, :7], y[4:]))


def test_load_names_duplicate_and_missing_ids():
    message = refused(frame(id=[*range(29), 4]))
    assert 'id "4"' in message
    assert "rows 4 and 29" in message
    assert len(load(DataConfig(frame(id=[*range(29), 4]), id="")).rows["train"]) == 27
    assert "row 2" in refused(frame(key=["a", "b", None] * 10), id="key")


def test_load_refuses_images_only_if_all_are_missing(tmp_path):
    table = pd.DataFrame({"image": ["a.png", "b.png", "c.png", "d.png"], "label": ["x", "y"] * 2})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert str(tmp_path / "a.png") in refused(tmp_path / "t.csv")
    (tmp_path / "b.png").write_bytes(jpeg(1))
    read = everything(tmp_path / "t.csv").rows["train"].samples.read(range(4))
    assert [isinstance(r, UnreadableImage) for r in read] == [True, False, True, True]


def test_unavailable_hub_name_is_a_user_error(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert "hf:a/b could not be loaded (Couldn't reach the Hub)" in refused("hf:a/b")


@pytest.mark.parametrize(("field", "value"), [("validation_fraction", 1.0), ("test_fraction", -0.1), ("limit", 1)])
def test_load_refuses_fractions_out_of_range(field, value):
    assert field in refused(frame(), **{field: value})


# ------------------------------------------------------------------------------------------------ prediction


def test_load_unlabeled_reads_every_format(tmp_path):
    image_tree(tmp_path, {"mixed/deep": 2})
    assert load_unlabeled(tmp_path, kind="image").ids.tolist() == ["mixed/deep/0.png", "mixed/deep/1.png"]
    single = load_unlabeled(tmp_path / "mixed" / "deep" / "1.png")
    assert single.samples.read([0])[0].getpixel((0, 0)) == (1, 1, 1)
    assert load_unlabeled(["a", "b"], kind="text").samples.read([1]) == ["b"]
    assert load_unlabeled(np.ones((3, 2))).samples.read([0]).tolist() == [[1.0, 1.0]]
    rows = load_unlabeled(frame().drop(columns="label"))
    assert (rows.y == -1).all()
    assert len(rows) == 30
    with pytest.raises(UserError, match="empty"):
        load_unlabeled([], kind="text")
    with pytest.raises(UserError, match="the model reads image"):
        load_unlabeled(frame(), kind="image", text="text")


@pytest.mark.shared
def test_load_reads_the_shared_tables(shared):
    images = shared / "data/images"
    data = load(
        DataConfig(
            images / "cifar10_train.parquet",
            label="human_worst",
            true_label="label",
            test=images / "cifar10_test.parquet",
            limit=10_000,
        )
    )
    assert {s: len(r) for s, r in data.rows.items()} == {"train": 9000, "validation": 1000, "test": 10_000}
    assert (data.rows["train"].y != data.truth["train"]).mean() == pytest.approx(0.402, abs=0.02)
    text = load(
        DataConfig(
            shared / "data/text/trec6.parquet",
            text="text",
            label="weak_label",
            true_label="label",
            split_column="split",
        )
    )
    assert len(text.rows["unlabeled"]) == 271
    assert len(text.rows["test"]) == 500
