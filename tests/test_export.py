"""Saved models: transformers opens native ones, and all are loaded with the same logits."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGES, SIZE, TEXTS, save_tiny
from torch import nn

from cleantune.backbones import ARCHITECTURES, open_backbone, quiet_transformers
from cleantune.errors import UserError
from cleantune.pipeline.export import load_model, save_model
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model

CLASSES = ["cat", "dog", "<b>bird</b>"]
POOLING_DESCRIPTIONS = ["w1 w2 w3 w4", "w5 w9", "w30 w1 w1 w1 w7 w8 w9"]


def net_of(name: str, folder: Path, image_size: int | None = None) -> Model:
    backbone = open_backbone(save_tiny(name, folder), image_size=image_size)
    generator = torch.Generator().manual_seed(1)
    mean = torch.empty(backbone.width).normal_(generator=generator)
    std = torch.empty(backbone.width).uniform_(0.5, 2, generator=generator)
    head = LinearHead(backbone.width, 3, standardize=(mean, std), generator=generator)
    with torch.no_grad():
        head.linear.weight.mul_(10)
        head.linear.bias.normal_(generator=generator)
    return Model(backbone, head).eval()


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)) for _ in range(3)]


def inputs_of(net: Model):
    preprocess = net.backbone.preprocess
    if net.backbone.architecture.kind == "image":
        pixels = torch.stack([torch.tensor(preprocess.to_array(p)) for p in pictures()])
        return preprocess.normalize(pixels.permute(0, 3, 1, 2))
    tokens = [torch.tensor(t) for t in preprocess.tokens(POOLING_DESCRIPTIONS)]
    ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=preprocess.pad_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits_of(net: Model) -> torch.Tensor:
    return net(inputs_of(net)).logits


def is_native(name: str) -> bool:
    return ARCHITECTURES[name].native_class is not None


@pytest.mark.parametrize("name", [n for n in IMAGES if is_native(n)])
@pytest.mark.parametrize("image_size", [None, 48])
def test_transformers_pipeline_gives_the_logits_of_images(name, image_size, tmp_path):
    net = net_of(name, tmp_path / "in", image_size)
    assert save_model(tmp_path / "model", net, classes=CLASSES, class_values=CLASSES) == "native"
    with quiet_transformers():
        import transformers

        pipe = transformers.pipeline("image-classification", model=str(tmp_path / "model"), device="cpu")
        rows = pipe(pictures(), function_to_apply="none", top_k=None)
    theirs = torch.tensor([[{r["label"]: r["score"] for r in row}[c] for c in CLASSES] for row in rows])
    torch.testing.assert_close(theirs, logits_of(net), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in TEXTS if is_native(n)])
def test_transformers_pipeline_gives_the_logits_of_texts(name, tmp_path):
    net = net_of(name, tmp_path / "in")
    assert save_model(tmp_path / "model", net, classes=CLASSES, class_values=CLASSES) == "native"
    with quiet_transformers():
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        batch = model(**inputs_of(net)).logits
        pipe = transformers.pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")
        rows = pipe(POOLING_DESCRIPTIONS, function_to_apply="none", top_k=None)
    theirs = torch.tensor([[{r["label"]: r["score"] for r in row}[c] for c in CLASSES] for row in rows])
    torch.testing.assert_close(theirs, logits_of(net), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.detach(), logits_of(net), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_loaded_model_has_the_same_logits_and_description(name, tmp_path):
    net = net_of(name, tmp_path / "in")
    form = save_model(tmp_path / "model", net, classes=CLASSES, class_values=[3, 5, 8], extra={"seed": 7})
    again, note = load_model(tmp_path / "model")
    assert form == ("native" if is_native(name) else "folder")
    torch.testing.assert_close(logits_of(again), logits_of(net), rtol=1e-4, atol=1e-4)
    assert (note["classes"], note["class_values"], note["extra"]) == (CLASSES, [3, 5, 8], {"seed": 7})
    assert not again.training


def test_image_size_and_max_length_are_restored(tmp_path):
    image = net_of("clip", tmp_path / "image", 48)
    save_model(tmp_path / "a", image, classes=CLASSES, class_values=CLASSES)
    again, _ = load_model(tmp_path / "a")
    assert again.backbone.preprocess == image.backbone.preprocess
    assert again.backbone.preprocess.size == (48, 48)
    text = Model(open_backbone(save_tiny("bert", tmp_path / "text"), max_length=5), LinearHead(16, 3))
    save_model(tmp_path / "b", text, classes=CLASSES, class_values=CLASSES)
    assert load_model(tmp_path / "b")[0].backbone.preprocess.max_length == 5


def test_pooling_of_a_sentence_transformer_is_restored(tmp_path):
    folder = save_tiny("bert", tmp_path / "in")
    rows = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"idx": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(rows)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    net = Model(open_backbone(folder), LinearHead(16, 3)).eval()
    save_model(tmp_path / "model", net, classes=CLASSES, class_values=CLASSES)
    again, _ = load_model(tmp_path / "model")
    assert again.backbone.pooling == net.backbone.pooling
    torch.testing.assert_close(logits_of(again), logits_of(net))


def test_head_alone_and_user_module_are_restored(tmp_path):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    head = Model(None, LinearHead(6, 3)).eval()
    assert save_model(tmp_path / "a", head, classes=CLASSES, class_values=CLASSES) == "head"
    torch.testing.assert_close(load_model(tmp_path / "a")[0](x).logits, head(x).logits, rtol=0, atol=0)

    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    net = Model(open_backbone(module, feature="hidden layer", width=5), LinearHead(5, 3)).eval()
    fresh = open_backbone(copy.deepcopy(module), feature="hidden layer", width=5)
    nn.init.zeros_(fresh.hf[0].weight)
    assert save_model(tmp_path / "b", net, classes=CLASSES, class_values=CLASSES) == "module"
    torch.testing.assert_close(load_model(tmp_path / "b", backbone=fresh)[0](x).logits, net(x).logits, rtol=0, atol=0)
    with pytest.raises(UserError, match="module from Python"):
        load_model(tmp_path / "b")


def test_saving_again_replaces_the_model(tmp_path):
    for count in (3, 2):
        net = Model(None, LinearHead(4, count))
        save_model(tmp_path / "model", net, classes=CLASSES[:count], class_values=CLASSES[:count])
    assert load_model(tmp_path / "model")[1]["classes"] == CLASSES[:2]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no model in .*nothing"):
        load_model(tmp_path / "nothing")


def test_no_pickled_file_is_written(tmp_path):
    save_model(tmp_path / "m", net_of("clip", tmp_path / "in"), classes=CLASSES, class_values=CLASSES)
    assert {p.suffix for p in (tmp_path / "m").rglob("*") if p.is_file()} == {".json", ".safetensors"}
    assert SIZE == 32
