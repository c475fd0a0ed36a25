"""Test pre-training: the written backbone, exact noise, and bitwise identical resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tiny

import cleantune
from cleantune.backbones import RECIPES, open_backbone, random_backbone
from cleantune.errors import UserError
from cleantune.studies.pretrain import exact_if_symmetric, pretrain
from cleantune.studies.synthetic import images
from cleantune.training.epochs import train

OPTIONS: dict[str, Any] = {"quiet": True, "precision": "float32", "test_fraction": 0.2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the synthetic discs as an image folder of five classes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for i, (pixels, c) in enumerate(zip(*images(), strict=True)):
        (folder / f"class{c}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{c}" / f"{i:03}.png")
    return folder


def pretrained(photos: Path, out: Path, epochs: int = 4, **more: Any) -> Any:
    settings = {"method.tune.epochs": epochs, "method.tune.batch_size": 32}
    return pretrain(photos, out=out, settings=settings, cache=str(out.parent / "cache"), **OPTIONS, **more)


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pretrained(photos, tmp_path_factory.mktemp("run") / "out", noise="symmetric:0.2", epochs=8)


def test_pretrain_learns_and_writes_a_usable_model(done: Any, photos: Path, tmp_path: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert done.summary["accuracy"]["test"] > 0.4  # chance: 0.2
    backbone = open_backbone(done.model)
    assert backbone.width == done.summary["width"] == 256
    run = cleantune.fit(photos, done.model, out=tmp_path / "fit", method="ce", cache=str(tmp_path), **OPTIONS)
    assert run.summary["accuracy"]["test"] is not None


def test_pretrain_noise_is_exact_and_in_the_config(done: Any) -> None:
    noise = done.summary["noise"]
    assert noise["noise"] == "symmetric:0.2,exact=true"
    assert noise["rate"] == 6 / 32  # 32 training images per class, of which a fifth is 6.4
    assert 'noise = "symmetric:0.2,exact=true"' in (done.path / "config.toml").read_text()
    assert exact_if_symmetric("symmetric:0.2,include_self=true") == "symmetric:0.2,include_self=true"
    assert exact_if_symmetric("pair:0.2") == "pair:0.2"


def test_pretrain_resumes_to_identical_weights(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrained(photos, tmp_path / "whole", seed=3)

    def killed(*args: Any, **more: Any) -> Any:
        for k, row in enumerate(train(*args, **more)):
            yield row
            if k == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("cleantune.studies.pretrain.train", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrained(photos, tmp_path / "cut", seed=3)
    assert not (tmp_path / "cut" / "summary.json").exists()
    monkeypatch.undo()
    again = pretrained(photos, tmp_path / "cut", seed=3, resume=True)
    one, two = open_backbone(whole.model).state_dict(), open_backbone(again.model).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len((again.path / "metrics.jsonl").read_text().splitlines()) == 4
    assert pretrained(photos, tmp_path / "cut", seed=3, resume=True).summary == again.summary
    with pytest.raises(UserError, match=r"model\.model"):
        pretrained(photos, tmp_path / "cut", seed=3, resume=True, backbone="resnet-18")


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "resnet-50"])
def test_random_backbone_depends_on_its_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (random_backbone(name, seed=s, image_size=32) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["vit", "clip", "bert"])
def test_random_backbone_takes_architecture_without_weights(tmp_path: Path, name: str) -> None:
    folder = save_tiny(name, tmp_path / name)
    given, fresh = open_backbone(folder), random_backbone(str(folder), seed=1)
    assert fresh.width == given.width
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in given.named_parameters()}
    assert fresh.fingerprint != given.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "resnet-smal"}, "resnet-small"),
        ({"settings": {"method.scope": "head"}}, "does not train one model"),
        ({"data": (np.eye(4, dtype=np.float32), [0, 1, 0, 1])}, "features already"),
    ],
)
def test_pretrain_refuses_unfitting_settings(photos: Path, tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pretrain(**{"data": photos, "out": tmp_path / "out", "quiet": True, "cache": str(tmp_path), **change})
