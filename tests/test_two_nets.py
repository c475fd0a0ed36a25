"""Methods of two nets: their cost, their cached views, hard class counts, and what is delivered of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import color_table
from fake_samples import fake_images
from test_contract import (  # noqa: F401 - a fixture
    CLASSES,
    WIDTH,
    Vectors,
    _one_thread,
    blobs,
    loop_for,
    quick,
    trained,
)
from tiny import save_tiny

import cleantune
from cleantune.backbones import open_backbone
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features import extract as extract_module
from cleantune.features import shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.extract import ViewSpec, extract
from cleantune.functional.standardize import mean_and_std
from cleantune.methods import METHODS
from cleantune.methods.protocol import EpochMetrics, Stage
from cleantune.pipeline.export import load_model, load_models, save_models
from cleantune.training.batches import FeatureBatches, SplitData
from cleantune.training.epochs import phases, train
from cleantune.training.heads import LinearHead, ProjectedHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

N = 160
BATCH = 32


# -- cost --------------------------------------------------------------------------------------------------------------


def spent(name: str, **changes: Any) -> list[int]:
    """Forwards of each epoch of a method in scope `all`."""
    problem = blobs(0.4, size=N)
    method = quick(name, "all", **changes)
    _, rows = trained(problem, method, loop_for(method, problem, "all"))
    total = [0, *(row["forward_passes"] for row in rows)]
    return [b - a for a, b in itertools.pairwise(total)]


def test_coteaching_costs_six_forward_passes_per_sample() -> None:
    assert spent("coteaching") == [6 * N] * 5
    assert spent("dividemix", warm_up_all=2)[:2] == [6 * N] * 2
    assert spent("unicon", warm_up_all=2)[:2] == [6 * N] * 2


class Counting:
    """Kept samples of each plan that a run learns from, and the rest beside them."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.beside: list[float] = []

    def run(self, name: str, **changes: Any) -> list[int]:
        """Forwards of the epochs after a warm-up of one."""
        problem, method = blobs(0.4, size=N), quick(name, "all", warm_up_all=1, **changes)
        run, learn = loop_for(method, problem, "all"), Trainer.learn

        def spy(nets: Any, loss: Any, selection: Any = None, **how: Any) -> None:
            if selection is not None:
                self.kept.append(int(selection.mask.sum()))
                self.beside.append(selection.unlabeled_ratio)
            learn(run, nets, loss, selection, **how)

        run.learn = spy  # type: ignore[method-assign]
        _, rows = trained(problem, method, run)
        total = [row["forward_passes"] for row in rows]
        return [b - a for a, b in itertools.pairwise(total)]


def test_dividemix_costs_two_and_thirty_six_rho() -> None:
    counting = Counting()
    for epoch, forward_passes in enumerate(counting.run("dividemix")):
        kept = counting.kept[2 * epoch : 2 * epoch + 2]
        assert forward_passes == 2 * N + 18 * sum(kept)


def test_unicon_costs_twenty_and_sixteen_r() -> None:
    counting = Counting()
    for epoch, forward_passes in enumerate(counting.run("unicon")):
        expected = 4.0 * N
        for k in (2 * epoch, 2 * epoch + 1):
            expected += counting.kept[k] * (8 + 16 * counting.beside[k])
        assert abs(forward_passes - expected) <= 2 * 16 * (N // BATCH + 1)
        share = counting.kept[2 * epoch] / N
        if counting.beside[2 * epoch] > 1:
            assert counting.beside[2 * epoch] == pytest.approx(1 / (2 * share), rel=0.25)


@pytest.mark.parametrize("name", ["coteaching", "dividemix", "unicon"])
def test_cached_features_cost_no_forward_pass(name: str) -> None:
    problem, method = blobs(0.4, size=N), quick(name, "head")
    run, _ = trained(problem, method, loop_for(method, problem, "all"))
    assert run.cost.forward_passes == 0


# -- class counts ------------------------------------------------------------------------------------------------------


def uneven(counts: list[int], width: int = 6) -> Callable[[int], Trainer]:
    """A maker of runs on features of classes of these sizes, with test samples of each."""
    classes, rng = len(counts), torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(classes, width, generator=rng)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    x = centers[y] + torch.randn(len(y), width, generator=rng)
    split = SplitData(y, FeatureBatches(x), None)

    def new_head(features: Any, k: int) -> LinearHead:
        scale = mean_and_std(features)
        return LinearHead(width, classes, standardize=scale, generator=torch.Generator().manual_seed(k))

    def loop(nets: int) -> Trainer:
        made = [Model(None, new_head(x, k)) for k in range(nets)]
        return Trainer(made, {"train": split, "validation": split}, classes, 0, new_head)

    return loop


def nothing(run: Trainer) -> dict[str, Any]:
    return {"accuracy_validation": None}


SHAPES = {
    "one sample a class": [1] * 5,
    "down to one sample": [100, 20, 5, 2, 1],
    "a hundred to one": [200, 200, 2, 2],
    "a class without a sample": [30, 0, 30],
    "a thousand classes": [2] * 1000,
    "two samples": [1, 1],
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_accept_any_class_sizes(name: str, shape: str) -> None:
    stage = Stage(epochs=3, learning_rate=1e-2, batch_size=32)
    changes: dict[str, Any] = {"warm_up_head": 1} if name in ("dividemix", "unicon") else {}
    if name == "unicon":
        changes["contrast_head"] = True
    method = METHODS[name](scope="head", probe=stage, tune=replace(stage, epochs=1), **changes)
    make = uneven(SHAPES[shape])
    rows: list[EpochMetrics] = list(train(phases(method, 0.0), make(method.phases()[0].num_nets), nothing))
    assert len(rows) >= 3
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("name", ["coteaching", "dividemix", "unicon"])
def test_clean_labels_leave_no_side_empty(name: str) -> None:
    problem = blobs(0.0, size=N, spread=0.05)
    method = quick(name, "head")
    _, rows = trained(problem, method, loop_for(method, problem, "head"))
    assert rows[-1]["accuracy_test"] > 0.97


# -- cached views ------------------------------------------------------------------------------------------------------


def test_cached_views_equal_forward_passes_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    monkeypatch.setattr(extract_module, "BATCH_SIZE", 4)
    monkeypatch.setattr(extract_module, "MAX_BATCH_SIZE", 4)
    body = open_backbone(save_tiny("resnet", tmp_path / "m"))
    prepared = make_model_inputs(fake_images(40), body.preprocess, tmp_path)  # type: ignore[arg-type]
    made = {}
    for seen in (ViewSpec("weak", 0), ViewSpec("weak", 1), ViewSpec("strong", 0)):
        key = seen.key("k", prepared.augmentation)  # type: ignore[attr-defined]
        made[seen] = np.asarray(extract(body, prepared, InferenceBackend(), tmp_path, key, None, seen))
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(made.values(), 2))
    with torch.no_grad():
        direct = body(ViewSpec("weak", 1).inputs(prepared, [16, 17, 18, 19]))
    np.testing.assert_allclose(made[ViewSpec("weak", 1)][16:20], direct.numpy(), rtol=1e-4, atol=1e-5)

    key = ViewSpec("weak", 0).key("k", prepared.augmentation)  # type: ignore[attr-defined]
    for name in ("index.json", "000001.npy"):  # as if it had been killed in the second shard
        (tmp_path / f"features-{key}" / name).unlink()
    again = np.asarray(extract(body, prepared, InferenceBackend(), tmp_path, key, None, ViewSpec("weak", 0)))
    assert np.array_equal(again, made[ViewSpec("weak", 0)])


def test_weak_and_strong_views_have_separate_caches() -> None:
    views = torch.stack([torch.full((100, 1), float(v)) for v in range(6)])
    source = FeatureBatches(views, num_strong=2)
    ((_, (a, b, c, d)),) = source.batches([torch.arange(100)], ("weak", "weak", "strong", "strong"), 0)
    assert set(torch.cat([a, b]).flatten().tolist()) == {1.0, 2.0, 3.0}
    assert set(torch.cat([c, d]).flatten().tolist()) == {4.0, 5.0}
    assert bool((a != b).all())
    assert bool((c != d).all())
    assert source.plain.flatten().tolist() == [0.0] * 100


QUICK = {
    "method.probe.epochs": 2, "method.probe.min_steps": 0, "method.warm_up_head": 1, "method.warm_up_all": 1,
    "method.tune.epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    color_table(folder, 60)
    save_tiny("resnet", folder / "model")
    return folder


def fitted(world: Path, out: Path, **options: Any) -> cleantune.Result:
    data = next(world.glob("*.parquet"))
    base: dict[str, Any] = {"label": "label", "true_label": "true", "cache": str(out.parent / "cache"), "quiet": True}
    return cleantune.fit(data, world / "model", out=out, precision="float32", device="cpu", **base | options)


@pytest.mark.parametrize(("name", "views", "extra"), [("dividemix", 2, 2), ("unicon", 2, 4), ("dividemix", 1, 0)])
def test_cached_views_are_counted_and_announced(
    name: str, views: int, extra: int, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"method": name, "scope": "head", "cached_augmentations": views, "quiet": False}
    result = fitted(world, tmp_path / "run", settings=QUICK, **options)
    train_rows = result.summary["samples"]["train"]
    assert result.summary["cost"]["forward_passes"] == (1 + extra) * train_rows
    told = [line for line in capsys.readouterr().err.splitlines() if "augmented views" in line]
    assert len(told) == (1 if extra else 0)
    if extra:
        assert f"{extra} augmented views of {train_rows} training samples" in told[0]
        assert "MiB" in told[0]
    assert cleantune.load(tmp_path / "run").predict_proba(next(world.glob("*.parquet"))).shape[1] == 3


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_loaded_ensemble_predicts_the_mean(scope: str, world: Path, tmp_path: Path) -> None:
    result = fitted(world, tmp_path / "run", method="unicon", scope=scope, cached_augmentations=2, settings=QUICK)
    model = result.model
    data = next(world.glob("*.parquet"))
    p = model.predict_proba(data)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    alone = [cleantune.load(folder).predict_proba(data) for folder in sorted((result.path / "model").glob("net-*"))]
    assert len(alone) == 2
    assert not np.allclose(alone[0], alone[1])
    np.testing.assert_allclose(p, (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="has 2 models"):
        load_model(result.path / "model")
    assert result.report.is_file()


def test_embeddings_have_one_view_and_two_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = blobs(0.3, size=120)
    names = np.array(["a", "b", "c", "d"])
    data = (problem.x["train"].numpy(), names[problem.y["train"].numpy()])
    result = cleantune.fit(data, out=tmp_path / "run", method="dividemix", settings=QUICK)
    assert "one view" in capsys.readouterr().err
    assert result.model.predict_proba(problem.x["test"].numpy()).shape == (120, CLASSES)


def test_a_projection_is_trained_and_not_exported(tmp_path: Path) -> None:
    head = ProjectedHead(LinearHead(WIDTH, 3), 4, seed=0)
    nets = [Model(None, head), Model(None, LinearHead(WIDTH, 3, generator=torch.Generator().manual_seed(1)))]
    assert save_models(tmp_path / "m", nets, classes=["a", "b", "c"], class_values=[0, 1, 2]) == "ensemble"
    loaded, note = load_models(tmp_path / "m")
    assert note["classes"] == ["a", "b", "c"]
    x = Vectors(torch.randn(5, WIDTH)).x
    for before, after in zip(nets, loaded, strict=True):
        assert type(after.head) is LinearHead
        torch.testing.assert_close(after(x).logits, before(x).logits)


@pytest.mark.parametrize("changes", [{}, {"lambda_c": 0.0}])
def test_contrast_trains_the_projection_in_scope_all(changes: dict[str, float]) -> None:
    problem, method = blobs(0.4, size=N), quick("unicon", "all", **changes)
    run, _ = trained(problem, method, loop_for(method, problem, "all"))
    assert all(isinstance(net.head, ProjectedHead) != bool(changes) for net in run.models)
    off = quick("unicon", "head").phases()[0]
    assert off.projection_dim == 0
