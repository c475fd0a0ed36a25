import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny

from cleantune.backbones import open_backbone
from cleantune.cli.main import cli
from cleantune.errors import UserError
from cleantune.pipeline import throughput
from cleantune.pipeline.plan import RESERVED_BYTES, plan
from cleantune.training import trainer


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(throughput, "BUDGET", 0.2)
    monkeypatch.setattr("cleantune.pipeline.plan.BUDGET", 0.2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    import pandas as pd
    from PIL import Image

    from cleantune.data.images import encode_png

    rng = np.random.default_rng(0)
    cells = [encode_png(Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))) for _ in range(60)]
    path = tmp_path_factory.mktemp("data") / "images.parquet"
    pd.DataFrame({"image": cells, "label": [i % 3 for i in range(60)]}).to_parquet(path)
    return path


def test_a_plan_counts_the_forwards_of_the_method_and_what_it_stores(images, tmp_path):
    model = save_tiny("resnet", tmp_path / "m")
    told = plan(str(images), str(model), method="ce", scope="all", quiet=True, cache=str(tmp_path / "c"))
    assert told.sizes.train + told.sizes.validation == 60
    assert told.spent is not None
    assert told.spent.trained == 5 * told.sizes.train
    assert told.training is not None
    assert told.training > 0
    head = {"method": "gce", "scope": "head", "quiet": True, "cache": str(tmp_path / "c")}
    probe = plan(str(images), str(model), **head)
    assert probe.spent is not None
    assert probe.spent.forward_passes == told.sizes.train
    assert probe.disk < told.disk
    assert plan(str(images), str(model), feature_dtype="float32", **head).disk - probe.disk == 2 * 60 * 16
    assert not list((tmp_path / "c").glob("features-*"))


def test_memory_holds_pixels_features_what_looks_make_anew_and_what_learning_keeps(images, tmp_path, monkeypatch):
    monkeypatch.setattr("cleantune.pipeline.plan.peak_bytes", lambda: 0)
    model, common = save_tiny("resnet", tmp_path / "m"), {"quiet": True, "cache": str(tmp_path / "c")}
    whole, head = (plan(str(images), str(model), method="ce", scope=scope, **common) for scope in ("all", "head"))
    weights = sum(p.numel() for p in open_backbone(str(model)).parameters())
    rows, width = 60, 16
    assert whole.memory - head.memory == 4 * rows * width + 3 * 4 * weights
    size = open_backbone(str(model)).preprocess.size
    assert head.memory == RESERVED_BYTES + 3 * rows * size[0] * size[1] + 2 * rows * width


def test_training_is_timed_as_a_run_does_it_with_half_of_the_threads_for_each_half(images, tmp_path, monkeypatch):
    entered, real = [], trainer.half_of_the_threads
    monkeypatch.setattr(trainer, "half_of_the_threads", lambda: entered.append(1) or real())
    model = save_tiny("resnet", tmp_path / "m")
    plan(str(images), str(model), method="ce", scope="all", quiet=True, cache=str(tmp_path / "c"))
    assert entered


def test_a_plan_of_features_needs_no_model(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, features=np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32), label=np.arange(90) % 3)
    done = CliRunner().invoke(cli, ["plan", str(path), "--method", "gce", "--scope", "head"])
    assert done.exit_code == 0, done.output
    for word in ("samples", "81 training", "forward_passes", "training", "disk", "memory"):
        assert word in done.output
    with pytest.raises(UserError, match="no data"):
        plan()
