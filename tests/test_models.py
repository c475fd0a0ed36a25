"""Tests of models: a backbone and a head."""

import copy

import pytest
import torch
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.features.precision import Precision
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model


@pytest.fixture
def backbone(tmp_path):
    return open_backbone(save_tiny("resnet", tmp_path / "r"))


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_model_counts_evaluated_and_trained_samples(backbone):
    net = Model(backbone, LinearHead(16, 3)).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(X).logits, net.head(backbone(X)).logits)
    assert (net.num_evaluated, net.num_trained) == (4, 0)
    net.train()
    net(X)
    with torch.no_grad():
        net(X)
    assert (net.num_evaluated, net.num_trained) == (8, 4)


def test_state_dict_names_are_stable(backbone):
    net = Model(backbone, LinearHead(16, 3), Precision(channels_last=True))
    names = set(net.state_dict())
    assert {"head.mean", "head.std", "head.linear.weight", "head.linear.bias"} <= names
    assert all(name.startswith(("head.", "backbone.hf.")) for name in names)


def test_frozen_batchnorm_trains_scale_and_keeps_statistics(backbone):
    statistics = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    net = Model(backbone, LinearHead(16, 3)).train()
    net(X).logits.sum().backward()
    assert all(torch.equal(backbone.state_dict()[k], v) for k, v in statistics.items())
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.grad is not None
    assert not norm.training
    assert net.training
    net.freeze_batchnorm = False
    net.train()
    net(X)
    assert any(not torch.equal(backbone.state_dict()[k], v) for k, v in statistics.items())


def test_copies_share_no_memory(backbone):
    one = Model(backbone, LinearHead(16, 3))
    two = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert all(bool(p.any()) for name, p in two.named_parameters() if name == "head.linear.weight")
    pointers = {t.data_ptr() for t in one.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in two.state_dict().values()}


@pytest.mark.parametrize(
    "precision", [Precision(channels_last=True), Precision("bfloat16"), Precision("bfloat16", True)]
)
@torch.no_grad()
def test_precisions_agree_with_float32(precision, backbone):
    head = LinearHead(16, 3)
    plain = Model(copy.deepcopy(backbone), head).eval()(X)
    other = Model(copy.deepcopy(backbone), head, precision).eval()(X)
    assert other.logits.dtype == other.features.dtype == torch.float32
    torch.testing.assert_close(
        other.logits, plain.logits, rtol=0.05, atol=0.02 if precision.dtype == "bfloat16" else 1e-4
    )


def test_model_without_backbone_takes_features():
    net = Model(None, LinearHead(6, 3))
    x = torch.randn(2, 6)
    torch.testing.assert_close(net(x).logits, net.head(x).logits)
    assert (net.num_evaluated, net.num_trained) == (0, 0)


def test_training_is_bitwise_reproducible(backbone):
    def trained():
        torch.manual_seed(0)
        net = Model(copy.deepcopy(backbone), LinearHead(16, 3, generator=torch.Generator().manual_seed(0))).train()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            net(X).logits.square().sum().backward()
            optimizer.step()
        return net.state_dict()

    one, two = trained(), trained()
    assert all(torch.equal(one[k], two[k]) for k in one)
