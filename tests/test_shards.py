"""Shards appear completely or not at all; the first decides the number format."""

import json
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.errors import UserError
from cleantune.features import shards
from cleantune.features.cache import Features, find_features
from cleantune.features.shards import ensure_shard, has_shard, to_float16_if_lossless, write_index, write_shard


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)


def normal(rows, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (rows, 8)).astype(np.float32)


def slicer(features, starts):
    """Return a function that computes shards, and appends the first row of each to `starts`."""

    def compute(rows):
        starts.append(rows.start)
        return features[rows.start : rows.stop]

    return compute


def write_all(folder, features, dtype, order=None):
    starts = []
    for k in order or range(shards.num_shards(len(features))):
        ensure_shard(folder, k, features.shape, slicer(features, starts), dtype)
    write_index(folder, *features.shape, {}, dtype)
    return starts


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cleantune.features import shards

folder, dtype = Path(sys.argv[1]), sys.argv[2]
shards.SHARD_ROWS, whole, save = 16, np.load(folder.parent / "whole.npy"), np.save

def half(file, shard, **options):
    save(file, shard, **options)
    if folder.joinpath("000001.npy").exists():
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

np.save = half
for k in range(4):
    shards.ensure_shard(folder, k, whole.shape, lambda rows: whole[rows.start : rows.stop], dtype)
"""


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_killed_writer_leaves_no_partial_shard(dtype, tmp_path):
    features = normal(50)
    np.save(tmp_path / "whole.npy", features)
    torn, alone = tmp_path / "features-torn", tmp_path / "features-alone"
    process = subprocess.run([sys.executable, "-c", KILLED, str(torn), dtype], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert sorted(p.name for p in torn.glob("*.npy")) == ["000000.npy", "000001.npy"]
    assert len(list(torn.glob(".000002.npy.*"))) == 1, "it was killed while it wrote"
    assert find_features(tmp_path, "torn") is None
    assert write_all(torn, features, dtype) == [32, 48]
    assert write_all(alone, features, dtype) == [0, 16, 32, 48]
    for path in alone.iterdir():
        assert (torn / path.name).read_bytes() == path.read_bytes()
    again = find_features(tmp_path, "torn")
    assert again.storage_dtype == dtype
    np.testing.assert_allclose(again, features, rtol=1e-3 if dtype == "float16" else 0, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_first_shard_decides_dtype_in_any_order(order, tmp_path):
    usual, flat, large, coarse = (normal(48) for _ in range(4))
    flat[16:32, 0] = 1000 + usual[16:32, 0] / 100  # float16 loses it, but only the first shard is compared
    large[32:, 0] = 1e6  # beyond float16
    coarse[:16, 0] = flat[16:32, 0]
    expected = {"usual": "hhh", "flat": "hhh", "large": "hhf", "coarse": "fff"}
    for name, features in {"usual": usual, "flat": flat, "large": large, "coarse": coarse}.items():
        folder = tmp_path / f"features-{name}"
        assert sorted(write_all(folder, features, "float16", order)) == [0, 16, 32], "each is computed once"
        index = json.loads((folder / "index.json").read_text())
        assert "".join({"float16": "h", "float32": "f"}[dtype] for dtype in index["dtypes"]) == expected[name]
        found = find_features(tmp_path, name)
        assert found.storage_dtype == ("float16" if expected[name] == "hhh" else "float32")
        np.testing.assert_allclose(found, features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_ensure_shard_replaces_other_dtypes(dtype, tmp_path):
    features = normal(16)
    write_shard(tmp_path / "000000.npy", features.astype(dtype))
    assert not has_shard(tmp_path, 0, features.shape)
    ensure_shard(tmp_path, 0, features.shape, slicer(features, []), "float32")
    assert np.array_equal(np.load(tmp_path / "000000.npy"), features)


def test_write_shard_error_names_file_and_remedy(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"000000\.npy: No space left on device; .*--cache"):
        write_shard(tmp_path / "000000.npy", normal(2))
    assert not list(tmp_path.iterdir())


def test_to_float16_keeps_float32_where_rounding_matters():
    usual, constant, flat, large = (normal(50) for _ in range(4))
    constant[:, 0] = 5
    flat[:, 0] = 1000 + usual[:, 0] / 100
    large[3, 3] = 1e6
    assert to_float16_if_lossless(usual).dtype == np.float16
    assert to_float16_if_lossless(constant).dtype == np.float16
    assert to_float16_if_lossless(flat) is flat
    assert to_float16_if_lossless(large) is large


@pytest.mark.parametrize(("value", "fits"), [(65519, True), (65520, False), (np.nan, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_to_float16_never_overflows(value, fits, sign):
    f = np.zeros((4, 3), np.float32)
    f[1, 1] = sign * value
    assert (to_float16_if_lossless(f, compare=False).dtype == np.float16) == fits
    with np.errstate(over="ignore"):
        assert np.isfinite(f.astype(np.float16)).all() == fits


RUNS = [range(2, 9), range(25), range(4, 1, -1)]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    picks=st.lists(st.one_of(st.integers(0, 4), st.sampled_from(RUNS)), max_size=5),
    half=st.booleans(),
)
def test_rows_across_shards_equal_rows_of_one_array(sizes, picks, half):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float16 if half else np.float32) for n in sizes]
    whole = np.concatenate(parts)
    order = rng.permutation(len(whole)) if half else np.arange(len(whole))
    f = Features(parts, order, {})
    rows = [row for pick in picks for row in ([pick] if isinstance(pick, int) else pick)]
    index = np.array([row for row in rows if row < len(whole)], np.int64)
    assert np.array_equal(f[index], whole[order][index])
    assert np.array_equal(f.load(), whole[order])
    assert f.load().dtype == whole.dtype


def test_load_maps_one_shard_at_a_time(tmp_path, monkeypatch):
    features, order = normal(50), np.random.default_rng(1).permutation(50)
    write_all(tmp_path / "features-k", features, "float32")
    f = find_features(tmp_path, "k").take(order)
    load, mapped, num_open = np.load, [], []

    def watched(*args, **options):
        shard = load(*args, **options)
        mapped.append(weakref.ref(shard))
        num_open.append(sum(ref() is not None for ref in mapped))
        return shard

    monkeypatch.setattr(np, "load", watched)
    assert np.array_equal(f.load(), features[order])
    assert len(mapped) == 4
    assert max(num_open) <= 2
    assert not any(ref() is not None for ref in mapped)
    assert np.array_equal(np.concatenate([f[k : k + 1] for k in range(50)]), features[order])
    assert sum(ref() is not None for ref in mapped) == 4, "row by row they stay open"
