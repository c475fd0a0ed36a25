"""Inputs of a run: decoding, unreadable samples, and the resolution of arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import QUICK, color_table, embeddings
from tiny import save_tiny

import cleantune
from cleantune.data.image_cache import Decoder
from cleantune.errors import UserError
from cleantune.pipeline import inputs as inputs_module
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.inputs import HeadFactory, prepare_inputs
from cleantune.pipeline.resolve import configure_arguments, resolve
from cleantune.utils.console import Console

QUIET = Console(quiet=True)


@pytest.mark.parametrize("trains", [True, False])
def test_training_images_are_decoded_before_extraction_on_a_cpu(
    trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"test_fraction": 0.22, "device": "cpu", "backend": "torch", "cache": str(tmp_path / "cache")}
    model = save_tiny("resnet", tmp_path / "model")
    run = resolve(configure_arguments(FitArguments(data=color_table(tmp_path), model=model, options=options)), QUIET)
    decoded: list[int] = []
    fill, extract = Decoder.fill, inputs_module.extract
    undecoded = []

    def count_undecoded(backbone: Any, split_inputs: Any, *args: Any, **kwargs: Any) -> Any:
        undecoded.append(len(split_inputs) - len(decoded))
        features = extract(backbone, split_inputs, *args, **kwargs)
        decoded.clear()
        return features

    monkeypatch.setattr(Decoder, "fill", lambda decoder, out, rows: decoded.extend(rows) or fill(decoder, out, rows))
    monkeypatch.setattr(inputs_module, "extract", count_undecoded)
    sizes = [len(rows) for rows in run.data.rows.values()]
    inputs = prepare_inputs(run.config, run.data, run.backbone, QUIET, trains_backbone=trains)
    assert [len(f) for f in inputs.features.values()] == sizes
    assert undecoded == ([0] * len(sizes) if trains else sizes)


def test_unreadable_images_are_listed_up_to_the_limit(tmp_path: Path) -> None:
    save_tiny("resnet", tmp_path / "model")
    table = color_table(tmp_path, 60, unreadable=2)
    options: dict[str, Any] = {"label": "label", "quiet": True, "settings": QUICK}
    with pytest.raises(UserError, match=r"2 of 60 samples cannot be read.*--max-unreadable"):
        cleantune.fit(table, tmp_path / "model", out=tmp_path / "no", **options)
    result = cleantune.fit(table, tmp_path / "model", out=tmp_path / "yes", max_unreadable=0.1, **options)
    assert result.summary["samples"]["unreadable"] == 2
    unreadable = pd.read_csv(result.path / "artifacts" / "unreadable_samples.csv")
    assert set(unreadable["id"]) == {"image-0", "image-1"}
    assert not set(unreadable["id"]) & set(result.labels["id"])


def test_models_have_heads_of_their_own() -> None:
    f, y = embeddings(80)
    config = configure_arguments(FitArguments(data=(f, y), method="ce"))
    run = resolve(config, QUIET)
    inputs = prepare_inputs(run.config, run.data, run.backbone, QUIET)
    one, two = inputs.make_models(2, HeadFactory(4, "normal", 0))
    again = inputs.make_models(1, HeadFactory(4, "normal", 0))[0]
    assert not np.array_equal(one.head.linear.weight.detach(), two.head.linear.weight.detach())
    np.testing.assert_array_equal(one.head.linear.weight.detach(), again.head.linear.weight.detach())


def test_text_data_are_refused_by_an_image_model(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"] * 20, "label": [0, 1] * 20}).to_csv(tmp_path / "t.csv", index=False)
    model = save_tiny("resnet", tmp_path / "model")
    run = resolve(configure_arguments(FitArguments(data=tmp_path / "t.csv", model=model)), QUIET)
    with pytest.raises(UserError, match=r"takes images, but the data are texts: .*--image"):
        prepare_inputs(run.config, run.data, run.backbone, QUIET)
