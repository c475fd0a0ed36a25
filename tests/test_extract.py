"""Features are computed once, resume to the same bits, and name the samples that fail."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_samples import fake_images, fake_texts
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.data import image_cache
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features import extract as extract_module
from cleantune.features import shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.cache import find_features
from cleantune.features.extract import ViewSpec, batch_size_for, extract

TORCH = InferenceBackend()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    monkeypatch.setattr(extract_module, "BATCH_SIZE", 4)
    monkeypatch.setattr(extract_module, "MAX_BATCH_SIZE", 4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: save_tiny(name, tmp_path_factory.mktemp("m") / name) for kind, name in KINDS.items()}


KINDS = {"image": "resnet", "text": "bert"}


@pytest.fixture
def image(checkpoints):
    return open_backbone(checkpoints["image"])


@pytest.fixture
def text(checkpoints):
    return open_backbone(checkpoints["text"])


def inputs_of(backbone, cache, count=50, unreadable=()):
    is_image = backbone.architecture.kind == "image"
    samples = fake_images(count, unreadable=unreadable) if is_image else fake_texts(count)
    return make_model_inputs(samples, backbone.preprocess, cache)


class Passes:
    """Records the forward passes of a backbone; `on[n]` is called before the n-th."""

    def __init__(self, backbone, on=None):
        self.shapes, self.on = [], on or {}
        backbone.register_forward_pre_hook(self)

    def __call__(self, module, args):
        x = args[0]
        self.shapes.append(tuple(x.shape) if isinstance(x, torch.Tensor) else tuple(x["input_ids"].shape))
        self.on.get(len(self.shapes), lambda: None)()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_extract_equals_single_forward_passes(kind, checkpoints, tmp_path):
    backbone = open_backbone(checkpoints[kind])
    prepared = inputs_of(backbone, tmp_path)
    f = extract(backbone, prepared, TORCH, tmp_path, "k")
    alone = torch.cat([backbone(prepared.eval_view(torch.tensor([i]))) for i in range(50)])
    assert f.shape == (50, backbone.width)
    torch.testing.assert_close(torch.from_numpy(np.asarray(f)), alone, rtol=1e-4, atol=1e-5)


def test_extract_reads_cached_features_without_forward_pass(image, tmp_path):
    prepared = inputs_of(image, tmp_path)
    first = np.asarray(extract(image, prepared, TORCH, tmp_path, "k"))
    passes = Passes(image)
    assert np.array_equal(first, extract(image, prepared, TORCH, tmp_path, "k"))
    assert not passes.shapes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_interrupted_extraction_resumes_bitwise(kind, stop, checkpoints, tmp_path):
    backbone = open_backbone(checkpoints[kind])
    prepared = inputs_of(backbone, tmp_path)
    expected = np.asarray(extract(backbone, prepared, TORCH, tmp_path, "whole"))
    passes = Passes(backbone, {stop: interrupt})
    with pytest.raises(KeyboardInterrupt):
        extract(backbone, prepared, TORCH, tmp_path, "interrupted")
    assert find_features(tmp_path, "interrupted") is None
    num_before = len(passes.shapes)
    passes.on.clear()
    assert np.array_equal(expected, extract(backbone, prepared, TORCH, tmp_path, "interrupted"))
    assert len(passes.shapes) - num_before == 13 - 4 * ((stop - 1) // 4)  # shards of 4 batches, the last of 1
    assert {p.suffix for p in (tmp_path / "features-interrupted").iterdir()} == {".npy", ".json"}


def test_second_writer_in_between_changes_nothing(image, tmp_path):
    prepared = inputs_of(image, tmp_path)
    alone = np.asarray(extract(image, prepared, TORCH, tmp_path, "alone"))
    Passes(image, {6: lambda: extract(image, prepared, TORCH, tmp_path, "both")})
    assert np.array_equal(alone, extract(image, prepared, TORCH, tmp_path, "both"))
    assert np.array_equal(alone, find_features(tmp_path, "both"))


@pytest.mark.parametrize("damaged", ["000001.npy", "index.json"])
def test_damaged_cache_is_computed_again(damaged, image, tmp_path):
    prepared = inputs_of(image, tmp_path)
    first = np.array(extract(image, prepared, TORCH, tmp_path, "k"))
    path = tmp_path / "features-k" / damaged
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(first, extract(image, prepared, TORCH, tmp_path, "k"))


@pytest.mark.parametrize("feature_dtype", ["float16", "float32"])
def test_unknown_index_is_rewritten_over_same_shards(feature_dtype, image, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_ROUNDING_ERROR", 0.1)  # features of a tiny random network hardly vary
    prepared, path = inputs_of(image, tmp_path), tmp_path / "features-k" / "index.json"
    first = np.asarray(extract(image, prepared, TORCH, tmp_path, "k", feature_dtype=feature_dtype))
    index = path.read_bytes()
    path.write_text(json.dumps(json.loads(index) | {"dtypes": ["float8"] * 4}))
    passes = Passes(image)
    assert np.array_equal(first, extract(image, prepared, TORCH, tmp_path, "k", feature_dtype=feature_dtype))
    assert not passes.shapes
    assert path.read_bytes() == index


def test_unreadable_samples_get_zeros_and_a_reason(image, tmp_path):
    expected = np.asarray(extract(image, inputs_of(image, tmp_path), TORCH, tmp_path, "all"))
    extract(image, inputs_of(image, tmp_path, unreadable=[2, 17]), TORCH, tmp_path, "k")
    f = find_features(tmp_path, "k")
    assert f.unreadable == {2: "photo 2: truncated", 17: "photo 17: truncated"}
    assert not f[[2, 17]].any()
    readable = np.setdiff1d(np.arange(50), [2, 17])
    np.testing.assert_allclose(f.take(readable)[:], expected[readable], rtol=1e-4, atol=1e-6)


def test_unreadable_images_are_detected_on_demand(image, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "MEMORY_FRACTION", 0.0)
    monkeypatch.setattr(image_cache, "DISK_FRACTION", 0.0)
    f = extract(image, inputs_of(image, tmp_path, unreadable=[9]), TORCH, tmp_path, "k")
    assert list(f.unreadable) == [9]
    assert not f[9].any()


def test_non_finite_feature_is_refused_by_name(image, tmp_path):
    class Divides(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) / (x.flatten(1).sum(1, keepdim=True) - pole)

    own = open_backbone(Divides(), feature="channels", width=3, preprocess=image.preprocess)
    prepared = inputs_of(image, tmp_path)
    pole = prepared.eval_view(torch.tensor([21])).flatten(1).sum()
    with pytest.raises(UserError, match="not finite for photo 21 "):
        extract(own, prepared, TORCH, tmp_path, "k")


def test_extract_restores_training_mode(image, tmp_path):
    prepared = inputs_of(image, tmp_path)
    expected = np.asarray(extract(image, prepared, TORCH, tmp_path, "a"))
    assert np.array_equal(expected, extract(image.train(), prepared, TORCH, tmp_path, "b"))
    assert image.training


def test_texts_of_similar_length_share_a_batch(text, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 64)
    passes, prepared = Passes(text), inputs_of(text, tmp_path, 64)
    extract(text, prepared, TORCH, tmp_path, "k")
    assert sum(rows * length for rows, length in passes.shapes) < 1.15 * prepared.lengths.sum()


def test_progress_ends_at_the_total(image, tmp_path):
    calls = []
    extract(image, inputs_of(image, tmp_path), TORCH, tmp_path, "k", lambda *call: calls.append(call))
    assert calls == [(16, 50), (32, 50), (48, 50), (50, 50)]
    index = json.loads((tmp_path / "features-k" / "index.json").read_text())
    assert index["rows"] == 50
    assert [shape[0] for shape in index["shapes"]] == [16, 16, 16, 2]


def test_float16_features_are_read_as_float32(image, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_ROUNDING_ERROR", 0.1)
    prepared = inputs_of(image, tmp_path)
    full = np.asarray(extract(image, prepared, TORCH, tmp_path, "full"))
    half = extract(image, prepared, TORCH, tmp_path, "half", feature_dtype="float16")
    assert half.load().dtype == np.float16
    assert half[:].dtype == np.asarray(half).dtype == np.float32
    assert half.nbytes == 2 * 50 * image.width
    np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_augmented_views_repeat_by_number_only(view, image, tmp_path):
    prepared = inputs_of(image, tmp_path, 20)
    first, again, other = (
        np.asarray(extract(image, prepared, TORCH, tmp_path, key, view=ViewSpec(view, number)))
        for key, number in (("a", 0), ("b", 0), ("c", 1))
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    keys = {ViewSpec(view, number).key("k", "default") for number in (0, 1)} | {ViewSpec(view).key("k", "stronger")}
    assert len(keys) == 3


def test_batch_size_holds_pixels_of_64_large_images(image, text, monkeypatch):
    monkeypatch.setattr(extract_module, "BATCH_SIZE", 64)
    monkeypatch.setattr(extract_module, "MAX_BATCH_SIZE", 256)
    sizes = {}
    for size in (32, 112, 160, 224, 448):
        image.preprocess = image.preprocess.with_size(size)
        sizes[size] = batch_size_for(image, TORCH)
        assert batch_size_for(image, replace(TORCH, name="openvino")) == 64
    assert sizes == {32: 256, 112: 256, 160: 125, 224: 64, 448: 64}
    assert batch_size_for(text, TORCH) == 64
