import pickle
import threading

import numpy as np
import pytest
import torch
from fake_samples import FakeSamples, fake_images, fake_texts
from tiny import save_tiny

from cleantune.backbones import open_backbone, read_image_preprocess
from cleantune.config.augmentation import ImageAugmentation, TextAugmentation
from cleantune.data import image_cache
from cleantune.data.model_inputs import make_model_inputs, prefetch, sort_by_length
from cleantune.errors import UserError


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return read_image_preprocess(save_tiny("convnext", tmp_path_factory.mktemp("m") / "c"), None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return open_backbone(save_tiny("bert", tmp_path_factory.mktemp("m") / "b")).preprocess


def forced(monkeypatch, storage: str) -> None:
    """Memory for nothing, and for `decoder` no disk either."""
    if storage != "memory":
        monkeypatch.setattr(image_cache, "MEMORY_FRACTION", 0.0)
    if storage == "decoder":
        monkeypatch.setattr(image_cache, "DISK_FRACTION", 0.0)


@pytest.mark.parametrize("storage", ["memory", "map", "decoder"])
def test_pixels_equal_single_reads_in_every_store(storage, image, tmp_path, monkeypatch):
    forced(monkeypatch, storage)
    samples = fake_images(300)
    prepared = make_model_inputs(samples, image, tmp_path)
    index = torch.tensor([299, 0, 7, 7])
    expected = torch.stack([torch.tensor(image.to_array(samples.items[i])).permute(2, 0, 1) for i in index.tolist()])
    assert torch.equal(prepared.pixels(index), expected)
    torch.testing.assert_close(prepared.eval_view(index), image.normalize(expected))
    assert len(list(tmp_path.glob("pixels-*"))) == (storage == "map")


def test_lazy_pixels_can_be_pickled_while_decoding(image, tmp_path, monkeypatch):
    monkeypatch.setattr("cleantune.data.image_cache.BLOCK", 16)
    samples = fake_images(300)
    prepared = make_model_inputs(samples, image, tmp_path, lazy=True)
    prepared.pixels(torch.tensor([0]))
    assert len(samples.reads) < 300
    sent = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(sent.pixels(torch.arange(300)), prepared.pixels(torch.arange(300)))


def test_memory_map_is_decoded_once(image, tmp_path, monkeypatch):
    forced(monkeypatch, "map")
    first = make_model_inputs(fake_images(20, unreadable=[3]), image, tmp_path)
    samples = fake_images(20, unreadable=[3])
    again = make_model_inputs(samples, image, tmp_path)
    assert samples.reads == []
    assert torch.equal(first.pixels(torch.arange(20)), again.pixels(torch.arange(20)))
    assert again.unreadable == first.unreadable == {3: "photo 3: truncated"}


def test_interrupted_memory_map_leaves_no_file(image, tmp_path, monkeypatch):
    forced(monkeypatch, "map")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_model_inputs(fake_images(20), image, tmp_path, stop)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(make_model_inputs(fake_images(20), image, tmp_path)) == 20


@pytest.mark.parametrize("storage", ["memory", "map", "decoder"])
def test_unreadable_images_are_recorded_and_black(storage, image, tmp_path, monkeypatch):
    forced(monkeypatch, storage)
    prepared = make_model_inputs(fake_images(6, unreadable=[1, 4]), image, tmp_path)
    assert not prepared.pixels(torch.tensor([1, 4])).any()
    assert prepared.unreadable == {1: "photo 1: truncated", 4: "photo 4: truncated"}
    taken = prepared.take(np.array([5, 4]))
    assert taken.unreadable == {1: "photo 4: truncated"}
    assert taken.describe(0) == "photo 5"
    assert torch.equal(taken.pixels(torch.tensor([0])), prepared.pixels(torch.tensor([5])))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_progress_is_monotone_and_ends_at_the_total(kind, image, text, tmp_path):
    samples, preprocess = (fake_images(300), image) if kind == "image" else (fake_texts(300), text)
    calls: list[tuple[int, int]] = []
    make_model_inputs(samples, preprocess, tmp_path, lambda *now: calls.append(now))
    assert calls == sorted(calls)
    assert calls[-1] == (300, 300)


def test_text_batch_is_padded_to_its_longest_text(text, tmp_path):
    samples = fake_texts(50)
    prepared = make_model_inputs(samples, text, tmp_path)
    index = torch.tensor([4, 17, 33])
    batch = prepared.eval_view(index)
    rows = text.tokens([samples.items[i] for i in index.tolist()])
    width = max(map(len, rows))
    assert batch["input_ids"].tolist() == [r + [text.pad_id] * (width - len(r)) for r in rows]
    assert batch["attention_mask"].tolist() == [[1] * len(r) + [0] * (width - len(r)) for r in rows]
    assert prepared.lengths[index].tolist() == [len(r) for r in rows]
    assert prepared.take(np.array([17])).eval_view(torch.tensor([0]))["input_ids"].tolist() == [rows[1]]


def test_text_without_tokens_keeps_one_unmasked_position(text, tmp_path):
    bare = FakeSamples(["", "w1"], "text")
    text.tokens = lambda texts: [[] if not t else [5] for t in texts]
    try:
        batch = make_model_inputs(bare, text, tmp_path).eval_view(torch.tensor([0]))
    finally:
        del text.tokens
    assert batch["input_ids"].tolist() == [[text.pad_id]]
    assert batch["attention_mask"].tolist() == [[1]]


def test_text_views_drop_words_but_no_special_tokens(text, tmp_path):
    prepared = make_model_inputs(fake_texts(200), text, tmp_path, augmentation=TextAugmentation(weak=0.2, strong=0.6))
    index = torch.arange(200)
    counts = {}
    generator = torch.Generator().manual_seed(0)
    batches = {
        "plain": prepared.eval_view(index),
        "weak": prepared.weak_view(index, generator),
        "strong": prepared.strong_view(index, generator),
    }
    for view, batch in batches.items():
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        counts[view] = int(mask.sum()) - 400
        assert bool((ids[:, 0] == 1).all())
        assert bool((ids.gather(1, mask.sum(1, keepdim=True) - 1) == 2).all())
    assert 0.7 < counts["weak"] / counts["plain"] < 0.9
    assert 0.35 < counts["strong"] / counts["plain"] < 0.5


def test_image_views_use_the_augmentation_settings(image, tmp_path):
    still = ImageAugmentation(flip=0.0, degrees=0.0, translate=0.0, scale=0.0, num_ops=0)
    prepared = make_model_inputs(fake_images(4), image, tmp_path, augmentation=still)
    index = torch.arange(4)
    for make in (prepared.weak_view, prepared.strong_view):
        torch.testing.assert_close(make(index, torch.Generator()), prepared.eval_view(index), rtol=0, atol=1e-3)


def test_make_model_inputs_refuses_another_modality(image, text, tmp_path):
    with pytest.raises(UserError, match="takes images"):
        make_model_inputs(fake_texts(2), image, tmp_path)
    with pytest.raises(UserError, match="takes texts"):
        make_model_inputs(fake_images(2), text, tmp_path)


def test_sort_by_length_orders_texts_and_keeps_images(image, text, tmp_path):
    texts = make_model_inputs(fake_texts(40), text, tmp_path)
    order = sort_by_length(texts, range(40))
    assert sorted(order) == list(range(40))
    assert [int(texts.lengths[i]) for i in order] == sorted(texts.lengths.tolist())
    assert sort_by_length(make_model_inputs(fake_images(5), image, tmp_path), [3, 1, 2]) == [3, 1, 2]


def test_prefetch_yields_the_items_and_passes_errors_on():
    assert list(prefetch(iter(range(5)))) == list(range(5))

    def failing():
        yield 1
        raise ValueError("second")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="second"):
        next(items)


def test_prefetch_ends_its_thread_when_closed_early():
    before = threading.active_count()
    items = prefetch(iter(range(100)))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_lazy_pixels_equal_eager_ones_and_decode_on_use(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "BLOCK", 4)
    monkeypatch.setattr(image_cache, "PREFETCH_BLOCKS", 2)
    backbone = open_backbone(save_tiny("resnet", tmp_path / "r"))
    samples = fake_images(50, unreadable=[7, 40])
    whole = make_model_inputs(samples, backbone.preprocess, tmp_path)
    samples.reads.clear()
    prefetch = make_model_inputs(samples, backbone.preprocess, tmp_path, lazy=True)
    assert samples.reads == []
    first = torch.arange(6)
    assert torch.equal(prefetch.pixels(first), whole.pixels(first))
    calls = []
    prefetch.finish(lambda *now: calls.append(now))
    assert calls[-1] == (50, 50)
    assert sorted(samples.reads) == list(range(50))
    order = torch.randperm(50)
    assert torch.equal(prefetch.eval_view(order), whole.eval_view(order))
    assert prefetch.unreadable == whole.unreadable == {7: "photo 7: truncated", 40: "photo 40: truncated"}


def test_cached_features_leave_images_unread(tmp_path):
    from cleantune.features.backend import InferenceBackend
    from cleantune.features.extract import extract

    backbone = open_backbone(save_tiny("resnet", tmp_path / "r"))
    samples = fake_images(50)
    extract(backbone, make_model_inputs(samples, backbone.preprocess, tmp_path), InferenceBackend(), tmp_path, "k")
    samples.reads.clear()
    lazy = make_model_inputs(samples, backbone.preprocess, tmp_path, lazy=True)
    extract(backbone, lazy, InferenceBackend(), tmp_path, "k")
    assert samples.reads == []


@pytest.mark.parametrize("order", ["ascending", "backwards", "scattered", "twice"])
def test_streamed_pixels_equal_kept_ones_in_any_order(order, image, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "BLOCK", 8)
    monkeypatch.setattr(image_cache, "PREFETCH_BLOCKS", 2)
    samples = fake_images(50, unreadable=[9])
    kept = make_model_inputs(samples, image, tmp_path)
    passing = make_model_inputs(samples, image, tmp_path, lazy=True, keep=False)
    batches = [np.arange(start, min(start + 6, 50)) for start in range(0, 50, 6)]
    asked = {
        "ascending": batches,
        "backwards": batches[::-1],
        "scattered": [np.random.default_rng(0).permutation(50)[:20], np.array([7]), np.array([], int)],
        "twice": batches + batches,
    }[order]
    for rows in asked:
        assert torch.equal(passing.pixels(torch.from_numpy(rows)), kept.pixels(torch.from_numpy(rows)))
    assert order == "scattered" or passing.unreadable == kept.unreadable


def test_streamed_pixels_are_decoded_once_in_a_pass(image, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "BLOCK", 8)
    monkeypatch.setattr(image_cache, "PREFETCH_BLOCKS", 2)
    samples = fake_images(50)
    passing = make_model_inputs(samples, image, tmp_path, lazy=True, keep=False)
    passing.eval_view(torch.arange(1))
    for start in range(0, 50, 6):
        passing.eval_view(torch.arange(start, min(start + 6, 50)))
    assert sorted(samples.reads) == list(range(50))
    passing.eval_view(torch.arange(1))
    assert len(samples.reads) > 50, "decoded pixels are not kept"
    again = pickle.loads(pickle.dumps(passing))
    assert torch.equal(again.pixels(torch.arange(5)), passing.pixels(torch.arange(5)))
