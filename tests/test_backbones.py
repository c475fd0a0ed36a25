import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHECKPOINTS, IMAGES, SIZE, TEXTS, save_tiny
from torch import nn

from cleantune.backbones import ARCHITECTURES, Pooling, open_backbone, quiet_transformers
from cleantune.backbones.architectures import pool
from cleantune.errors import UserError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {name: save_tiny(name, base / name) for name in CHECKPOINTS}


def pixels(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(count: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 36, (count, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:2, 4:] = 0
    ids[1:2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_image_feature_matches_transformers(name, checkpoints):
    backbone, x = open_backbone(checkpoints[name]), pixels()
    out = backbone.hf(x)
    hidden = out.last_hidden_state
    expected = {
        "vit": lambda: hidden[:, 0],
        "vit_mae": lambda: hidden[:, 0],
        "vit_msn": lambda: hidden[:, 0],
        "dinov2": lambda: torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1),
        "clip": lambda: (
            backbone.hf.vision_model.post_layernorm(hidden[:, 0])
            if hasattr(backbone.hf, "vision_model")
            else backbone.hf.post_layernorm(hidden[:, 0])
        ),
        "siglip": lambda: out.pooler_output,
        "swin": lambda: hidden.mean(1),
        "convnext": lambda: backbone.hf.layernorm(hidden.mean((2, 3))),
        "resnet": lambda: hidden.mean((2, 3)),
        "mobilenet_v2": lambda: hidden.mean((2, 3)),
    }[name]()
    torch.testing.assert_close(backbone(x), expected)
    assert backbone(x).shape == (3, backbone.width)


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_text_feature_is_mean_of_unpadded_tokens(name, checkpoints):
    backbone, x = open_backbone(checkpoints[name]), tokens()
    hidden = backbone.hf(**x).last_hidden_state
    expected = torch.stack([hidden[i, : int(n)].mean(0) for i, n in enumerate(x["attention_mask"].sum(1))])
    if name == "modernbert":
        centered = expected - expected.mean(1, keepdim=True)
        expected = centered / (centered.square().mean(1, keepdim=True) + backbone.hf.config.norm_eps).sqrt()
    torch.testing.assert_close(backbone(x), expected)
    assert backbone.width == expected.shape[1]


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_text_feature_ignores_padding(name, checkpoints):
    backbone, x = open_backbone(checkpoints[name]), tokens()
    alone = {key: value[1:2, :4] for key, value in x.items()}
    torch.testing.assert_close(backbone(x)[1:2], backbone(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_vit_mae_is_opened_without_masking(checkpoints):
    backbone, x = open_backbone(checkpoints["vit_mae"]), pixels()
    torch.testing.assert_close(backbone(x), backbone(x), rtol=0, atol=0)
    with quiet_transformers():
        import transformers

        encoder = transformers.ViTMAEModel.from_pretrained(checkpoints["vit_mae"], mask_ratio=0.0).eval()
    # The encoder shuffles the patches, which its first token does not see.
    torch.testing.assert_close(backbone(x), encoder(x).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=30)
def test_pool_equals_loops_over_tokens(count, length, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, length, 4, generator=generator, dtype=torch.float64)
    real = torch.randint(1, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < real[:, None]).long()
    f = pool(hidden, mask, Pooling(("cls", "max", "mean", "mean_sqrt"), norm="l2"))
    for i in range(count):
        rows = [hidden[i, t].numpy() for t in range(int(real[i]))]
        total = np.sum(rows, axis=0)
        parts = [rows[0], np.max(rows, axis=0), total / len(rows), total / len(rows) ** 0.5]
        whole = np.concatenate(parts)
        np.testing.assert_allclose(f[i], whole / np.linalg.norm(whole), atol=1e-12)


# -- sentence-transformers ---------------------------------------------------------------------------------------------


def as_sentence_transformer(folder: Path, modes: dict[str, bool], kinds: list[str], **settings) -> Path:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    rows = [{"idx": i, "path": paths[k], "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def test_sentence_transformers_settings_are_applied(tmp_path):
    folder = save_tiny("bert", tmp_path / "m")
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    as_sentence_transformer(
        folder, modes, ["Transformer", "Pooling", "Normalize"], max_seq_length=9, do_lower_case=True
    )
    backbone, x = open_backbone(folder), tokens(1)
    hidden = backbone.hf(**x).last_hidden_state
    expected = torch.cat([hidden[:, 0], hidden.amax(1)], 1)
    torch.testing.assert_close(backbone(x), expected / expected.norm(dim=1, keepdim=True))
    assert backbone.width == 32
    assert "unit length" in backbone.feature
    assert backbone.preprocess.max_length == 9
    assert backbone.preprocess.tokens(["W1 W2"]) == backbone.preprocess.tokens(["w1 w2"])


def test_pooling_of_newer_files_is_read(tmp_path):
    folder = save_tiny("bert", tmp_path / "m")
    as_sentence_transformer(folder, {"pooling_mode": "cls"}, ["Transformer", "Pooling"])
    assert open_backbone(folder).pooling == Pooling(("cls",))


@pytest.mark.parametrize(
    ("modes", "kinds", "word"),
    [
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Dense"], "Dense"),
        ({"pooling_mode_weightedmean_tokens": True}, ["Transformer", "Pooling"], "weightedmean"),
        ({}, ["Transformer", "Pooling"], "of nothing"),
    ],
)
def test_unknown_modules_and_poolings_are_refused_by_name(modes, kinds, word, tmp_path):
    folder = as_sentence_transformer(save_tiny("bert", tmp_path / "m"), modes, kinds)
    with pytest.raises(UserError, match=word):
        open_backbone(folder)


def test_default_max_length_is_128_or_limit_of_model(tmp_path):
    assert open_backbone(save_tiny("bert", tmp_path / "a")).preprocess.max_length == 36  # the tokenizer's
    roberta = save_tiny("roberta", tmp_path / "b", max_position_embeddings=20)
    assert open_backbone(roberta).preprocess.max_length == 19  # positions start behind the padding index
    assert open_backbone(roberta, max_length=7).preprocess.max_length == 7
    with pytest.raises(UserError, match="at most 19"):
        open_backbone(roberta, max_length=20)


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_image_size_interpolates_position_embeddings(name, checkpoints):
    backbone = open_backbone(checkpoints[name], image_size=48)
    x = pixels(2, 48)
    assert backbone(x).shape == (2, backbone.width)
    if name in ("vit", "vit_msn", "clip", "siglip"):
        original = open_backbone(checkpoints[name])
        expected = original.hf(x, interpolate_pos_encoding=True)
        torch.testing.assert_close(
            backbone(x), expected.pooler_output if name in ("clip", "siglip") else expected.last_hidden_state[:, 0]
        )


def test_image_size_must_be_multiple_of_patch(checkpoints):
    with pytest.raises(UserError, match="--image-size 48"):
        open_backbone(checkpoints["vit"], image_size=50)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_the_function_only(tmp_path, checkpoints):
    one = open_backbone(checkpoints["convnext"])
    copy = tmp_path / "moved"
    shutil.copytree(checkpoints["convnext"], copy)
    assert open_backbone(copy).fingerprint == one.fingerprint
    assert open_backbone(save_tiny("convnext", tmp_path / "other", seed=1)).fingerprint != one.fingerprint
    before = one.fingerprint
    with torch.no_grad():
        next(one.parameters()).view(-1)[0] += 1
    assert one.fingerprint != before
    small = open_backbone(checkpoints["convnext"], image_size=16)
    assert small.preprocess.fingerprint != one.preprocess.fingerprint


def test_open_backbone_keeps_global_generator(checkpoints):
    before = torch.random.get_rng_state()
    for name in ("vit_mae", "clip", "bert"):
        open_backbone(checkpoints[name], **({"image_size": 48} if name != "bert" else {}))
    assert torch.equal(before, torch.random.get_rng_state())


def test_open_backbone_prints_nothing_and_restores_logging(checkpoints, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    open_backbone(checkpoints["vit_mae"])
    assert logging.get_verbosity() == logging.INFO
    logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_TELEMETRY


def test_tiny_models_cover_all_architectures():
    assert set(CHECKPOINTS) == set(ARCHITECTURES)


@pytest.mark.shared
def test_pretrained_mobilenet_takes_own_and_other_sizes(shared):
    folder = shared / "models" / "mobilenet_v2_0.35"
    assert open_backbone(folder).preprocess.size == (224, 224)
    backbone = open_backbone(folder, image_size=64)
    assert (backbone.width, backbone.preprocess.size) == (1280, (64, 64))
    torch.testing.assert_close(
        backbone.preprocess.normalize(torch.tensor([0.0, 255]).expand(1, 3, 1, 2)).unique(), torch.tensor([-1.0, 1.0])
    )


# -- refusals ----------------------------------------------------------------------------------------------------------


def broken(name: str, folder: Path) -> Path:
    folder = save_tiny("vit", folder)
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if name == "no weights":
        weights.unlink()
    elif name == "pickled weights":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    elif name == "unknown architecture":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "vitdet"}))
    elif name == "weights of another depth":
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif name == "weights of another width":
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 20}))
    elif name == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif name == "broken config":
        (folder / "config.json").write_text("{")
    elif name == "no config":
        (folder / "config.json").unlink()
    elif name == "no preprocessing":
        (folder / "preprocessor_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no weights", ["no weights", "model.safetensors"]),
        ("pickled weights", ["pytorch_model.bin", "convert", "safetensors"]),
        ("unknown architecture", ['"vitdet"', "mobilenet_v2", "torch.nn.Module", "feature"]),
        ("weights of another depth", ["layers.2", "config"]),
        ("weights of another width", ["weights"]),
        ("truncated weights", ["fetch it again"]),
        ("broken config", ["config.json"]),
        ("no config", ["config.json"]),
        ("no preprocessing", ["preprocessor_config.json"]),
    ],
)
def test_broken_checkpoint_is_refused_by_name(name, words, tmp_path):
    folder = broken(name, tmp_path / "m")
    with pytest.raises(UserError) as caught:
        open_backbone(folder)
    sentence = str(caught.value)
    assert all(word in sentence for word in [*words, "model", str(folder)])
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "a/b/c", "some-org/some-model"])
def test_missing_model_is_refused_by_name(name):
    with pytest.raises(UserError, match="no such model") as caught:
        open_backbone(name)
    assert f'"{name}"' in str(caught.value)


def test_model_of_other_modality_is_refused(checkpoints):
    with pytest.raises(UserError, match=r"data are texts.*vit.*takes images"):
        open_backbone(checkpoints["vit"], kind="text")
    with pytest.raises(UserError, match=r"data are images.*bert.*takes texts"):
        open_backbone(checkpoints["bert"], kind="image")


def test_head_of_checkpoint_is_ignored(tmp_path, checkpoints):
    with quiet_transformers():
        import transformers

        config = transformers.ViTConfig.from_pretrained(checkpoints["vit"])
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "m")
    shutil.copy(checkpoints["vit"] / "preprocessor_config.json", tmp_path / "m")
    assert open_backbone(tmp_path / "m").width == 16


def test_module_with_described_feature_is_a_backbone():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
    backbone = open_backbone(module, feature="last layer", width=5)
    assert backbone(torch.zeros(2, 3, 2, 2)).shape == (2, 5)
    assert (backbone.feature, backbone.architecture.has_batchnorm, backbone.training) == ("last layer", True, False)
    with pytest.raises(UserError, match="feature="):
        open_backbone(module)


def test_narrow_text_networks_have_larger_learning_rates(checkpoints):
    backbone = open_backbone(checkpoints["bert"])
    assert backbone.learning_rate == pytest.approx(ARCHITECTURES["bert"].learning_rate * 768 / 16)


def test_constant_weights_compute_fingerprint_once(checkpoints):
    backbone = open_backbone(checkpoints["vit"])
    before = backbone.fingerprint
    with backbone.constant_weights():
        with torch.no_grad():
            next(backbone.parameters()).mul_(2)
        assert backbone.fingerprint == before
    assert backbone.fingerprint != before
