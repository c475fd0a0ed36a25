"""LoRA: adapters alone learn, nothing changes before they do, and the delivered model is a plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, save_tiny

import cleantune
from cleantune.backbones import open_backbone
from cleantune.errors import UserError
from cleantune.training.lora import add_lora, merge, set_trainable

pytest.importorskip("peft")


@pytest.mark.parametrize("name", ["vit", "clip", "dinov2", "swin", "bert", "mpnet", "modernbert"])
def test_add_lora_adapts_mlp_layers_and_changes_no_output(tmp_path: Path, name: str) -> None:
    backbone = open_backbone(save_tiny(name, tmp_path / name))
    if name in TEXTS:
        x = {"input_ids": torch.tensor([[1, 7, 9, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    else:
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    with_lora = add_lora(backbone, 4, seed=0).eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    layers = [n for n, m in with_lora.named_modules() if hasattr(m, "base_layer")]
    assert layers
    assert not any("attention" in n or "attn" in n for n in layers)
    with torch.no_grad():
        torch.testing.assert_close(with_lora(x), backbone(x))


def test_only_adapters_learn_and_merge_keeps_the_function(tmp_path: Path) -> None:
    backbone = add_lora(open_backbone(save_tiny("vit", tmp_path / "vit")), 4, seed=0).eval()
    set_trainable(backbone, True)
    learning = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in backbone.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name in learning:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = backbone(x)
        merge(backbone)
        torch.testing.assert_close(backbone(x), before, rtol=1e-4, atol=1e-5)
    assert not any("lora_" in name for name in backbone.state_dict())
    set_trainable(backbone, False)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_add_lora_refuses_networks_without_mlp_layers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a transformer"):
        add_lora(open_backbone(save_tiny("resnet", tmp_path / "resnet")), 4, seed=0)


def test_fit_in_scope_lora_changes_mlp_weights_only(tmp_path: Path) -> None:
    model = save_tiny("bert", tmp_path / "bert")
    texts = [f"w{1 + i % 3} w{4 + i % 5}" for i in range(60)]
    data = {"text": texts, "label": [i % 3 for i in range(60)]}
    options = {"method": "nmtune", "scope": "lora", "quiet": True, "cache": str(tmp_path / "cache")}
    done = cleantune.fit(
        data, model, out=tmp_path / "run", precision="float32",
        settings={"method.tune.epochs": 3, "method.tune.min_steps": 3}, **options,
    )  # fmt: skip
    assert "lora_rank = 8" in (tmp_path / "run" / "config.toml").read_text()
    assert {"loss_covariance", "loss_dominance"} <= set((tmp_path / "run" / "metrics.jsonl").read_text().split('"'))
    tuned = open_backbone(tmp_path / "run" / "model" / "backbone").state_dict()
    given = open_backbone(model).state_dict()
    changed = {name for name in given if not torch.equal(tuned[name], given[name])}
    assert changed
    assert all("dense" in name and "attention" not in name and name.endswith("weight") for name in changed), changed
    assert np.isfinite(done.model.predict_proba({"text": texts[:4], "label": [0] * 4})).all()
