"""Features in the cache: their key, their rows, and an index that is not ours."""

import json

import numpy as np
import pytest
import torch
from tiny import save_tiny

from cleantune.backbones import open_backbone
from cleantune.features import shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.cache import CachedViews, features_key, find_features
from cleantune.features.precision import Precision
from cleantune.features.shards import ensure_shard, num_shards, write_index
from cleantune.functional.standardize import mean_and_std

TORCH = InferenceBackend()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


@pytest.fixture
def features(array, tmp_path):
    for k in range(num_shards(50)):
        ensure_shard(tmp_path / "features-k", k, (50, 8), lambda rows: array[rows.start : rows.stop], "float32")
    write_index(tmp_path / "features-k", 50, 8, {2: "photo 2: truncated", 17: "photo 17: truncated"})
    return find_features(tmp_path, "k")


def test_features_are_indexed_like_an_array(features, array):
    mask = np.arange(50) % 3 == 0
    for index in (slice(10, 40), np.array([49, 0, 16, 15, 0]), mask, slice(None), [3], 17):
        assert np.array_equal(features[index], array[index])
    order = np.array([40, 2, 33])
    assert np.array_equal(features.take(order)[1:], array[order][1:])
    assert features.take(order).shape == (3, 8)
    assert np.asarray(features).dtype == np.float32


def test_unreadable_rows_follow_the_selection(features):
    assert features.unreadable == {2: "photo 2: truncated", 17: "photo 17: truncated"}
    assert features.take(np.setdiff1d(np.arange(50), [2, 17])).unreadable == {}
    assert features.take(np.array([17])).unreadable == {0: "photo 17: truncated"}


def test_mean_and_std_are_computed_once(features):
    expected = mean_and_std(features)
    assert all(torch.equal(a, b) for a, b in zip(features.mean_and_std, expected, strict=True))
    assert features.mean_and_std is features.mean_and_std


def test_cached_views_stack_views(features, array):
    views = CachedViews([array, features])
    assert views.shape == (2, 50, 8)
    assert np.array_equal(np.asarray(views), np.stack([array, array]))
    assert views[1] is features


@pytest.mark.parametrize("damage", ["truncated", "missing", "index"])
def test_find_features_rejects_damaged_files(damage, features, tmp_path):
    shard = tmp_path / "features-k" / "000001.npy"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:200])
    elif damage == "missing":
        shard.unlink()
    else:
        (tmp_path / "features-k" / "index.json").write_text("{")
    assert find_features(tmp_path, "k") is None


@pytest.mark.parametrize(
    "other",
    [{"dtypes": ["float8"] * 4}, {"dtypes": ["int8"] * 4}, {"dtypes": 1}, {"shards": None}, {"rows": None}, [], {}],
)
def test_find_features_rejects_unknown_index(other, features, tmp_path):
    path = tmp_path / "features-k" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other if other else other))
    assert find_features(tmp_path, "k") is None


def test_key_depends_on_all_that_decides_features(tmp_path):
    image = open_backbone(save_tiny("resnet", tmp_path / "r"))
    other = open_backbone(save_tiny("resnet", tmp_path / "s", seed=1))
    small = open_backbone(save_tiny("resnet", tmp_path / "t"), image_size=16)
    base = features_key(image, "data", TORCH)
    keys = {
        base,
        features_key(other, "data", TORCH),
        features_key(small, "data", TORCH),
        features_key(image, "other data", TORCH),
        features_key(image, "data", InferenceBackend("torch", Precision("bfloat16"))),
        features_key(image, "data", InferenceBackend("torch", Precision(channels_last=True))),
        features_key(image, "data", InferenceBackend("openvino")),
        features_key(image, "data", InferenceBackend("openvino", Precision("bfloat16"))),
        features_key(image, "data", TORCH, "float16"),
    }
    assert len(keys) == 9
    assert features_key(image, "data", InferenceBackend()) == base
    streams = (features_key(image, "data", InferenceBackend("openvino", num_streams=n)) for n in (1, 2))
    assert len(set(streams)) == 1
