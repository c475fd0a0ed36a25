import itertools
import threading

import numpy as np
import pytest
import torch
from fake_samples import fake_images, fake_texts
from tiny import save_tiny

from cleantune.backbones import open_backbone, read_image_preprocess
from cleantune.data.model_inputs import make_model_inputs
from cleantune.training import batches
from cleantune.training.batches import FeatureBatches, SampleBatches

BATCHES = [torch.tensor(b) for b in ([3, 1, 4], [1, 5, 9, 2], [6])]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return SampleBatches(
        make_model_inputs(fake_images(12), read_image_preprocess(save_tiny("convnext", folder / "c"), None), folder)
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return SampleBatches(
        make_model_inputs(fake_texts(12), open_backbone(save_tiny("bert", folder / "b")).preprocess, folder)
    )


def flat(item):
    index, views = item
    return [index, *(x for view in views for x in (view.values() if isinstance(view, dict) else [view]))]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for i, j in zip(one, two, strict=True) for a, b in zip(flat(i), flat(j), strict=True))


@pytest.mark.parametrize("name", ["images", "texts"])
def test_batches_depend_on_their_arguments_only(name, request):
    source = request.getfixturevalue(name)
    views = ("weak", "strong", "plain", "weak")
    first = list(source.batches(BATCHES, views, 5))
    torch.rand(3)
    next(source.batches(BATCHES, ("strong",), 9))
    assert same(first, list(source.batches(BATCHES, views, 5)))
    assert not same(first, list(source.batches(BATCHES, views, 6)))


def test_weak_views_differ_within_and_between_batches(images):
    same_batch = [torch.tensor([1, 2])] * 2
    (_, (a, b)), (_, (c, _)) = images.batches(same_batch, ("weak", "weak"), 0)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_interleaved_streams_equal_separate_ones(images):
    one, two = list(images.batches(BATCHES, ("weak",), 1)), list(images.batches(BATCHES, ("strong",), 2))
    pairs = list(zip(images.batches(BATCHES, ("weak",), 1), images.batches(BATCHES, ("strong",), 2), strict=True))
    assert same([p[0] for p in pairs], one)
    assert same([p[1] for p in pairs], two)


def test_prefetched_views_leave_the_global_generator_untouched(images):
    def run():
        torch.manual_seed(0)
        return [torch.rand(5) for _ in images.batches(BATCHES * 5, ("strong",), 1)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("name", ["images", "texts"])
def test_prefetched_batches_equal_those_of_the_caller(name, request, monkeypatch):
    source, views = request.getfixturevalue(name), ("weak", "strong", "plain")
    threads, weak_view = [], type(source.inputs).weak_view
    monkeypatch.setattr(
        type(source.inputs), "weak_view", lambda *a: threads.append(threading.current_thread()) or weak_view(*a)
    )
    prefetched = list(source.batches(BATCHES, views, 5, prefetch=True))
    assert threading.current_thread() not in threads
    threads.clear()
    assert same(prefetched, list(source.batches(BATCHES, views, 5)))
    assert set(threads) == {threading.current_thread()}


def test_order_is_by_length_for_texts_and_by_row_for_images(images, texts):
    assert images.order().tolist() == list(range(12))
    lengths = texts.inputs.lengths[texts.order().numpy()]
    assert lengths.tolist() == sorted(texts.inputs.lengths.tolist())


@pytest.mark.parametrize("kept", ["tensor", "array", "read-only", "mapped", "map", "half"])
def test_feature_batches_equal_rows_in_memory_and_on_disk(kept, tmp_path, monkeypatch):
    features = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16 if kept == "half" else np.float32)
    given = torch.from_numpy(features) if kept == "tensor" else features
    if kept == "read-only":
        given.flags.writeable = False
    if kept in ("map", "mapped"):
        np.save(tmp_path / "f.npy", features)
        given = np.load(tmp_path / "f.npy", mmap_mode="r")
    if kept == "map":
        monkeypatch.setattr(batches, "MEMORY_FRACTION", 0.0)
    source = FeatureBatches(given)
    assert len(source) == 10
    assert (kept == "map") == (not isinstance(source.features, torch.Tensor))
    for (index, views), asked in zip(source.batches(BATCHES, ("weak", "plain"), 0), BATCHES, strict=True):
        assert torch.equal(index, asked)
        for x in views:
            assert x.dtype == torch.float32
            np.testing.assert_array_equal(x, features[asked.numpy()].astype(np.float32))


def test_cached_views_differ_within_a_batch():
    views = torch.stack([torch.full((200, 1), float(v)) for v in range(5)])
    source = FeatureBatches(views)
    assert len(source) == 200
    ((_, (plain, a, b, c)),) = source.batches([torch.arange(200)], ("plain", "weak", "strong", "weak"), 0)
    assert not plain.any()
    for one, two in itertools.combinations((a, b, c), 2):
        assert bool((one != two).all())
    assert set(a.flatten().tolist()) == {1.0, 2.0, 3.0, 4.0}
    again = next(source.batches([torch.arange(200)], ("plain", "weak", "strong", "weak"), 0))[1]
    assert torch.equal(a, again[1])


def test_single_cached_view_serves_every_view():
    source = FeatureBatches(torch.randn(1, 10, 3))
    ((_, (a, b)),) = source.batches(BATCHES[:1], ("weak", "strong"), 0)
    assert torch.equal(a, b)


def test_block_size_on_disk_does_not_change_batches(monkeypatch):
    from cleantune.features.cache import Features

    rng = np.random.default_rng(0)
    shards = [rng.normal(size=(n, 3)).astype(np.float16) for n in (16, 16, 5)]
    features = Features(shards, rng.permutation(37), {})
    monkeypatch.setattr(batches, "MEMORY_FRACTION", 0.0)
    monkeypatch.setattr(batches, "DISK_BLOCK", 11)
    source, indices = FeatureBatches(features), torch.randperm(37).split(4)
    assert not isinstance(source.features, torch.Tensor)
    seen = list(source.batches(indices, ("weak", "weak"), 0))
    assert [index.tolist() for index, _ in seen] == [batch.tolist() for batch in indices]
    for index, (a, b) in seen:
        assert a is b
        assert np.array_equal(a.numpy(), features[index.numpy()])
    monkeypatch.setattr(batches, "MEMORY_FRACTION", 1.0)
    inside = FeatureBatches(features)
    assert inside.features.dtype == torch.float16
    for (_, (a, _)), (_, (b, _)) in zip(seen, inside.batches(indices, ("weak", "weak"), 0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_block_size_in_memory_does_not_change_batches(size, monkeypatch):
    monkeypatch.setattr(batches, "MEMORY_BLOCK", size)
    f = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).half()
    found = list(FeatureBatches(f).batches(BATCHES, ("weak", "weak"), 0))
    assert [index.tolist() for index, _ in found] == [b.tolist() for b in BATCHES]
    for index, (one, two) in found:
        assert one is two
        assert torch.equal(one, f[index].float())


@pytest.mark.parametrize("rows", [[2, 3, 4], [0], [4, 3, 2], [2, 2, 4], [2, 4, 3], [0, 2, 1, 3], []])
def test_consecutive_and_scattered_rows_are_returned_alike(rows):
    index, features = torch.tensor(rows, dtype=torch.int64), torch.arange(12.0).view(6, 2)
    [(_, (x,))] = FeatureBatches(features).batches([index], ("plain",), 0)
    assert torch.equal(x, features[index])
