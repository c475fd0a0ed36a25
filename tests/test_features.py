import json
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from fake_samples import fake_images, fake_texts
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.data import image_cache
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features import cache, encoder
from cleantune.features.cache import Features, extract, features_key, find
from cleantune.features.precision import Precision


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache, "SHARD_ROWS", 16)
    monkeypatch.setattr(cache, "BATCH", 4)
    monkeypatch.setattr(cache, "MAX_BATCH_SIZE", 4)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return open_backbone(save_tiny("resnet", tmp_path_factory.mktemp("m") / "r"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return open_backbone(save_tiny("bert", tmp_path_factory.mktemp("m") / "b"))


def prepared_of(backbone, cache, count=50, unreadable=()):
    kind = backbone.architecture.kind
    samples = fake_images(count, unreadable=unreadable) if kind == "image" else fake_texts(count)
    return make_model_inputs(samples, backbone.preprocess, cache)


@pytest.mark.parametrize("kind", ["image", "text"])
@torch.no_grad()
def test_features_equal_forwards_one_by_one(kind, image, text, tmp_path):
    backbone = {"image": image, "text": text}[kind]
    prepared = prepared_of(backbone, tmp_path)
    f = extract(backbone, prepared, Precision(), tmp_path, "k")
    alone = torch.cat([backbone(prepared.eval_view(torch.tensor([i]))) for i in range(50)])
    assert f.shape == (50, backbone.width)
    assert np.asarray(f).dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(np.asarray(f)), alone, rtol=1e-4, atol=1e-5)


def test_cached_features_are_found_without_a_forward(image, tmp_path, monkeypatch):
    prepared = prepared_of(image, tmp_path)
    assert find(tmp_path, "k") is None
    first = np.asarray(extract(image, prepared, Precision(), tmp_path, "k"))
    monkeypatch.setattr(encoder, "forward", None)
    assert np.array_equal(first, extract(image, prepared, Precision(), tmp_path, "k"))
    assert np.array_equal(first, find(tmp_path, "k"))


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_killed_extraction_goes_on_where_it_stopped_to_the_same_bits(kind, stop, image, text, tmp_path, monkeypatch):
    backbone = {"image": image, "text": text}[kind]
    prepared = prepared_of(backbone, tmp_path)
    whole = np.asarray(extract(backbone, prepared, Precision(), tmp_path, "whole"))
    real, calls = encoder.forward, []

    def counted(*given):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(encoder, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        extract(backbone, prepared, Precision(), tmp_path, "killed")
    assert find(tmp_path, "killed") is None
    calls.clear()
    calls.extend([1] * 1000)
    again = extract(backbone, prepared, Precision(), tmp_path, "killed")
    assert np.array_equal(whole, again)
    assert len(calls) - 1000 == 13 - 4 * ((stop - 1) // 4)  # shards of 4 batches, the last of 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_writer_between_the_steps_of_the_first_changes_nothing(image, tmp_path, monkeypatch):
    prepared = prepared_of(image, tmp_path)
    alone = np.asarray(extract(image, prepared, Precision(), tmp_path, "alone"))
    real, calls = encoder.forward, []

    def overtaken(*given):
        calls.append(1)
        if len(calls) == 6:
            extract(image, prepared, Precision(), tmp_path, "both")
        return real(*given)

    monkeypatch.setattr(encoder, "forward", overtaken)
    assert np.array_equal(alone, extract(image, prepared, Precision(), tmp_path, "both"))
    assert np.array_equal(alone, find(tmp_path, "both"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "index"])
def test_damaged_cache_is_made_again(damage, image, tmp_path):
    prepared = prepared_of(image, tmp_path)
    first = np.array(extract(image, prepared, Precision(), tmp_path, "k"))
    shard = tmp_path / "features-k" / "000001.npy"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:200])
    elif damage == "missing":
        shard.unlink()
    else:
        (tmp_path / "features-k" / "index.json").write_text("{")
    assert find(tmp_path, "k") is None
    assert np.array_equal(first, extract(image, prepared, Precision(), tmp_path, "k"))


def test_bad_samples_have_zeros_and_a_reason_which_the_cache_keeps(image, tmp_path):
    prepared = prepared_of(image, tmp_path, unreadable=[2, 17])
    clean = np.asarray(extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "clean"))
    extract(image, prepared, Precision(), tmp_path, "k")
    f = find(tmp_path, "k")
    assert f.unreadable == {2: "photo 2: truncated", 17: "photo 17: truncated"}
    assert not f[[2, 17]].any()
    good = np.setdiff1d(np.arange(50), [2, 17])
    np.testing.assert_allclose(f.take(good)[:], clean[good], rtol=1e-4, atol=1e-6)
    assert f.take(good).unreadable == {}
    assert f.take(np.array([17])).unreadable == {0: "photo 17: truncated"}


def test_a_feature_that_is_not_finite_is_refused_by_the_name_of_the_sample(tmp_path):
    class Divides(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) / (x.flatten(1).sum(1, keepdim=True) - broken)

    backbone = open_backbone(save_tiny("resnet", tmp_path / "r"))
    own = open_backbone(Divides(), feature="channels", width=3, preprocess=backbone.preprocess)
    prepared = prepared_of(backbone, tmp_path)
    broken = prepared.eval_view(torch.tensor([21])).flatten(1).sum()
    with pytest.raises(UserError, match="not finite for photo 21 "):
        extract(own, prepared, Precision(), tmp_path, "k")


def test_key_changes_with_weights_preprocessing_data_and_precision(image, tmp_path):
    base = features_key(image, "data", Precision())
    assert base == features_key(image, "data", Precision(why="another reason"))
    other = open_backbone(save_tiny("resnet", tmp_path / "s", seed=1))
    small = open_backbone(save_tiny("resnet", tmp_path / "t"), image_size=16)
    keys = {
        base,
        features_key(other, "data", Precision()),
        features_key(small, "data", Precision()),
        features_key(image, "other data", Precision()),
        features_key(image, "data", Precision("bfloat16")),
        features_key(image, "data", Precision(channels_last=True)),
    }
    assert len(keys) == 6


def test_rows_are_read_as_an_array_reads_them(image, tmp_path):
    f = extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "k")
    whole = np.asarray(f)
    mask = np.arange(50) % 3 == 0
    for pick in (slice(10, 40), np.array([49, 0, 16, 15, 0]), mask, slice(None), [3]):
        assert np.array_equal(f[pick], whole[pick])
    assert np.array_equal(f[17], whole[17])
    order = np.array([40, 2, 33])
    assert np.array_equal(f.take(order)[1:], whole[order][1:])
    assert len(f.take(order)) == 3


RUNS = [range(2, 9), range(25), range(4, 1, -1)]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    picks=st.lists(st.one_of(st.integers(0, 4), st.sampled_from(RUNS)), max_size=5),
    half=st.booleans(),
)
def test_any_rows_of_any_shards_are_those_of_the_shards_together(sizes, picks, half):
    rng = np.random.default_rng(0)
    shards = [rng.normal(size=(n, 3)).astype(np.float16 if half else np.float32) for n in sizes]
    whole = np.concatenate(shards)
    order = rng.permutation(len(whole)) if half else np.arange(len(whole))
    f = Features(shards, order, {})
    rows = [row for pick in picks for row in ([pick] if isinstance(pick, int) else pick)]
    index = np.array([row for row in rows if row < len(whole)], np.int64)
    assert np.array_equal(f[index], whole[order][index])
    assert np.array_equal(f.stored(), whole[order])
    assert f.stored().dtype == whole.dtype


def test_all_rows_at_once_leave_no_shard_mapped_behind_the_next(image, tmp_path, monkeypatch):
    order = np.random.default_rng(0).permutation(50)
    f = extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "k").take(order)
    load, mapped, most = np.load, [], []

    def watched(*args, **kwargs):
        shard = load(*args, **kwargs)
        mapped.append(weakref.ref(shard))
        most.append(sum(each() is not None for each in mapped))
        return shard

    monkeypatch.setattr(cache.np, "load", watched)
    whole = f.stored()
    assert len(mapped) == 4
    assert max(most) <= 2
    assert not any(each() is not None for each in mapped)
    assert np.array_equal(whole.astype(np.float32), np.concatenate([f[k : k + 1] for k in range(50)]))
    assert sum(each() is not None for each in mapped) == 4  # row by row they stay open


def test_extraction_leaves_the_mode_of_the_backbone(image, tmp_path):
    image.train()
    try:
        f = extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "a")
        assert image.training
    finally:
        image.eval()
    assert np.array_equal(f, extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "b"))


def test_texts_of_like_length_share_a_batch(text, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_ROWS", 64)
    widths, real = [], encoder.forward

    def seen(backbone, x, *rest):
        widths.append(x["input_ids"].shape)
        return real(backbone, x, *rest)

    monkeypatch.setattr(encoder, "forward", seen)
    prepared = prepared_of(text, tmp_path, 64)
    extract(text, prepared, Precision(), tmp_path, "k")
    looked = sum(a * b for a, b in widths)
    assert looked < 1.15 * prepared.lengths.sum()


def test_progress_ends_at_the_total_and_the_index_lists_the_shards(image, tmp_path):
    told = []
    extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "k", lambda *now: told.append(now))
    assert told == [(16, 50), (32, 50), (48, 50), (50, 50)]
    index = json.loads((tmp_path / "features-k" / "index.json").read_text())
    assert index["rows"] == 50
    assert [shape[0] for shape in index["shapes"]] == [16, 16, 16, 2]


def test_decoding_on_demand_finds_its_bad_images_while_extracting(image, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "MEMORY_FRACTION", 0.0)
    monkeypatch.setattr(image_cache, "DISK_FRACTION", 0.0)
    f = extract(image, prepared_of(image, tmp_path, unreadable=[9]), Precision(), tmp_path, "k")
    assert list(f.unreadable) == [9]
    assert not f[9].any()


def test_float16_is_taken_where_it_changes_nothing_that_matters():
    rng = np.random.default_rng(0)
    usual = rng.normal(0, 3, (50, 8)).astype(np.float32)
    assert cache.to_float16_if_lossless(usual).dtype == np.float16
    constant = usual.copy()
    constant[:, 0] = 5
    assert cache.to_float16_if_lossless(constant).dtype == np.float16
    hardly_varies = usual.copy()
    hardly_varies[:, 0] = 1000 + usual[:, 0] / 100
    too_large = usual.copy()
    too_large[3, 3] = 1e6
    for f in (hardly_varies, too_large):
        assert cache.to_float16_if_lossless(f) is f


@pytest.mark.parametrize(("value", "fits"), [(65519, True), (65520, False), (np.nan, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_float16_is_not_taken_where_a_number_would_become_infinite(value, fits, sign):
    f = np.zeros((4, 3), np.float32)
    f[1, 1] = sign * value
    assert (cache.to_float16_if_lossless(f, judge=False).dtype == np.float16) == fits
    with np.errstate(over="ignore"):
        assert np.isfinite(f.astype(np.float16)).all() == fits


def test_mean_and_deviation_of_features_on_disk_are_computed_once(image, tmp_path, monkeypatch):
    f = extract(image, prepared_of(image, tmp_path), Precision(), tmp_path, "k")
    expected = cache.mean_and_std(f)
    monkeypatch.setattr(cache, "mean_and_std", lambda own: asked.append(own) or expected)
    asked: list[object] = []
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(f.scale, expected, strict=True))
    assert asked == [f]


def test_a_store_of_float16_is_read_as_float32_and_has_a_key_of_its_own(image, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROUNDING", 0.1)  # features of a tiny random network hardly vary
    prepared = prepared_of(image, tmp_path)
    full = np.asarray(extract(image, prepared, Precision(), tmp_path, "full"))
    half = extract(image, prepared, Precision(), tmp_path, "half", feature_dtype="float16")
    assert half.stored().dtype == np.float16
    assert half[:].dtype == np.asarray(half).dtype == np.float32
    assert half.bytes == 2 * 50 * image.width
    np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-6)
    assert features_key(image, "d", Precision()) != features_key(image, "d", Precision(), "float16")


def rows_of(whole, made):
    """What makes a shard out of these features, and writes down the first row of each that it makes."""

    def make(rows):
        made.append(rows.start)
        return whole[rows.start : rows.stop]

    return make


KILLED = """
import os, signal, sys
import numpy as np
from cleantune.features import cache
from cleantune.features import encoder

folder, store = cache.Path(sys.argv[1]), sys.argv[2]
cache.SHARD_ROWS, whole, save = 16, np.load(folder.parent / "whole.npy"), np.save

def half(file, shard, **how):
    save(file, shard, **how)
    if folder.joinpath("000001.npy").exists():
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

np.save = half
for k in range(4):
    cache.keep_shard(folder, k, whole.shape, lambda rows: whole[rows.start : rows.stop], store)
"""


@pytest.mark.parametrize("feature_dtype", ["float16", "float32"])
def test_a_shard_whose_writer_was_killed_is_not_there_and_is_made_again_to_the_same_bits(feature_dtype, tmp_path):
    whole = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "whole.npy", whole)
    torn, alone = tmp_path / "features-torn", tmp_path / "features-alone"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(torn), feature_dtype], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [p.name for p in sorted(torn.iterdir()) if p.suffix == ".npy"] == ["000000.npy", "000001.npy"]
    assert len(list(torn.glob("000002.npy.*.tmp"))) == 1, "it was killed in the midst of writing"
    assert find(tmp_path, "torn") is None
    made = {torn: [], alone: []}
    for folder, starts in made.items():
        for k in range(4):
            cache.ensure_shard(folder, k, whole.shape, rows_of(whole, starts), feature_dtype)
        cache.write_index(folder, 50, 8, {}, feature_dtype)
    assert made == {torn: [32, 48], alone: [0, 16, 32, 48]}
    for name in ("000000.npy", "000001.npy", "000002.npy", "000003.npy", "index.json"):
        assert (torn / name).read_bytes() == (alone / name).read_bytes()
    again = find(tmp_path, "torn")
    assert again.storage_dtype == feature_dtype
    np.testing.assert_allclose(again, whole, rtol=1e-3 if feature_dtype == "float16" else 0, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_first_shard_decides_the_format_whichever_is_asked_for_first(order, tmp_path):
    usual = np.random.default_rng(0).normal(0, 3, (48, 8)).astype(np.float32)
    flat, large = usual.copy(), usual.copy()
    flat[16:32, 0] = 1000 + usual[16:32, 0] / 100  # float16 alone would lose it, but does not judge after the first
    large[32:, 0] = 1e6  # no number of float16
    coarse = usual.copy()
    coarse[:16, 0] = flat[16:32, 0]
    expected = {"usual": "hhh", "flat": "hhh", "large": "hhf", "coarse": "fff"}
    for name, whole in {"usual": usual, "flat": flat, "large": large, "coarse": coarse}.items():
        made = []
        for k in order:
            cache.ensure_shard(tmp_path / f"features-{name}", k, whole.shape, rows_of(whole, made), "float16")
        assert sorted(made) == [0, 16, 32], "each is made once"
        cache.write_index(tmp_path / f"features-{name}", 48, 8, {}, "float16")
        index = json.loads((tmp_path / f"features-{name}" / "index.json").read_text())
        assert "".join({"float16": "h", "float32": "f"}[kind] for kind in index["formats"]) == expected[name]
        read = find(tmp_path, name)
        assert read.storage_dtype == ("float16" if expected[name] == "hhh" else "float32")
        np.testing.assert_allclose(read, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("feature_dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "other",
    [{"formats": ["float8"] * 4}, {"formats": ["int8"] * 4}, {"formats": 1}, {"shards": None}, {"rows": None}, [], {}],
)
def test_an_index_of_an_unknown_form_is_not_read_and_is_written_anew_over_the_same_shards(
    other, feature_dtype, image, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "ROUNDING", 0.1)
    prepared, path = prepared_of(image, tmp_path), tmp_path / "features-k" / "index.json"
    first = np.asarray(extract(image, prepared, Precision(), tmp_path, "k", feature_dtype=feature_dtype))
    index = path.read_bytes()
    path.write_text(json.dumps(json.loads(index) | other if other else other))
    assert find(tmp_path, "k") is None
    monkeypatch.setattr(encoder, "forward", None)
    assert np.array_equal(first, extract(image, prepared, Precision(), tmp_path, "k", feature_dtype=feature_dtype))
    assert path.read_bytes() == index


@pytest.mark.parametrize("kind", [np.int8, np.float64])
def test_a_shard_of_an_unknown_format_is_made_again(kind, tmp_path):
    whole = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    cache.write_shard(tmp_path / "000000.npy", whole.astype(kind))
    assert not cache.has_shard(tmp_path, 0, whole.shape)
    cache.ensure_shard(tmp_path, 0, whole.shape, rows_of(whole, []), "float32")
    assert np.array_equal(np.load(tmp_path / "000000.npy"), whole)


def test_small_images_fill_a_forward_with_the_pixels_of_large_ones(image, text, monkeypatch):
    monkeypatch.setattr(cache, "BATCH", 64)
    monkeypatch.setattr(cache, "MAX_BATCH_SIZE", 256)
    sizes = {}
    for size in (32, 112, 160, 224, 448):
        monkeypatch.setattr(image, "preprocess", image.preprocess.resized(size))
        sizes[size] = cache.batch_size_for(image, Precision())
        assert cache.batch_size_for(image, Precision(backend="openvino")) == 64
    assert sizes == {32: 256, 112: 256, 160: 125, 224: 64, 448: 64}
    assert cache.batch_size_for(text, Precision()) == 64
