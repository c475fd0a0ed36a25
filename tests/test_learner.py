import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.features.precision import Precision
from cleantune.functional.standardize import mean_and_std
from cleantune.training.models import LinearHead, Net


@pytest.fixture
def backbone(tmp_path):
    return open_backbone(save_tiny("resnet", tmp_path / "r"))


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@given(st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_standardization_is_mean_and_deviation_of_the_population(count, seed):
    x = np.random.default_rng(seed).normal(5, 3, (count, 4)).astype(np.float32)
    mean, std = mean_and_std(torch.from_numpy(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-5)
    expected = x.astype(np.float64).std(0)
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-5)


def test_standardization_in_blocks_is_that_of_the_whole(monkeypatch):
    x = np.random.default_rng(0).normal(1000, 1, (100, 3)).astype(np.float32)
    whole = mean_and_std(x)
    monkeypatch.setattr("cleantune.functional.standardize._BLOCK", 7)
    for ours, theirs in zip(mean_and_std(x), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_dimension_that_does_not_vary_keeps_its_scale():
    x = torch.randn(50, 3)
    x[:, 1] = 0.1
    _, std = mean_and_std(x)
    assert float(std[1]) == 1
    assert mean_and_std(torch.ones(5, 2))[1].tolist() == [1, 1]


def test_scores_are_those_of_the_standardized_features():
    x = torch.randn(20, 6) * 50 + 7
    head = LinearHead(6, 3, standardize=mean_and_std(x), generator=torch.Generator().manual_seed(0))
    output = head(x)
    torch.testing.assert_close(output.embedding, (x - x.mean(0)) / x.std(0, correction=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, output.embedding @ head.linear.weight.T + head.linear.bias)
    assert torch.equal(output.features, x)


def test_scores_that_are_only_looked_at_are_those_that_are_learned_from():
    g = torch.Generator().manual_seed(2)
    f = 5 + 3 * torch.randn(40, 7, generator=g)
    head = LinearHead(7, 4, standardize=mean_and_std(f), generator=g)
    with torch.no_grad():
        head.linear.bias.normal_(generator=g)
        looked = head(f).logits
    assert not looked.requires_grad
    torch.testing.assert_close(looked, head(f).logits.detach(), rtol=1e-5, atol=1e-6)


def test_an_exported_head_is_made_of_operators_that_every_program_has():
    head = LinearHead(7, 4, generator=torch.Generator().manual_seed(2)).eval()
    with torch.no_grad():
        program = torch.export.export(head, (torch.zeros(3, 7),))
    assert {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"} == {"aten"}


def test_folded_head_gives_the_same_scores_on_raw_features():
    x = torch.randn(20, 6) * 50 + 700
    head = LinearHead(6, 3, standardize=mean_and_std(x))
    nn.init.normal_(head.linear.bias)
    weight, bias = head.raw_weights()
    torch.testing.assert_close(
        x.double() @ weight.double().T + bias.double(), head(x).logits.double(), rtol=1e-4, atol=1e-4
    )


def test_initial_weights_are_as_stated_and_their_own_generators():
    before = torch.random.get_rng_state()
    head = LinearHead(400, 50, generator=torch.Generator().manual_seed(1))
    assert abs(head.linear.weight.std().item() - 0.02) < 0.001
    assert not head.linear.bias.any()
    assert not LinearHead(4, 3, init="zeros").linear.weight.any()
    assert torch.equal(
        head.linear.weight, LinearHead(400, 50, generator=torch.Generator().manual_seed(1)).linear.weight
    )
    LinearHead(4, 3, init="zeros")
    assert torch.equal(before, torch.random.get_rng_state())


def test_net_is_head_after_backbone_and_counts_what_went_through(backbone):
    net = Net(backbone, LinearHead(16, 3)).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(X).logits, net.head(backbone(X)).logits)
    assert (net.looked, net.trained) == (4, 0)
    net.train()
    net(X)
    with torch.no_grad():
        net(X)
    assert (net.looked, net.trained) == (8, 4)


def test_names_of_the_state_are_stable(backbone):
    net = Net(backbone, LinearHead(16, 3), Precision(channels_last=True))
    names = set(net.state_dict())
    assert {"head.mean", "head.std", "head.linear.weight", "head.linear.bias"} <= names
    assert all(name.startswith(("head.", "backbone.hf.")) for name in names)


def test_frozen_batchnorm_keeps_its_statistics_and_learns_its_scale(backbone):
    statistics = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    net = Net(backbone, LinearHead(16, 3)).train()
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


def test_copies_share_nothing(backbone):
    one = Net(backbone, LinearHead(16, 3))
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
def test_every_precision_gives_nearly_the_scores_of_float32_as_float32(precision, backbone):
    head = LinearHead(16, 3)
    plain = Net(copy.deepcopy(backbone), head).eval()(X)
    other = Net(copy.deepcopy(backbone), head, precision).eval()(X)
    assert other.logits.dtype == other.features.dtype == torch.float32
    torch.testing.assert_close(
        other.logits, plain.logits, rtol=0.05, atol=0.02 if precision.dtype == "bfloat16" else 1e-4
    )


def test_head_stays_in_float32_under_an_outer_autocast():
    head = LinearHead(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(torch.randn(2, 6).bfloat16())
    assert output.logits.dtype == output.embedding.dtype == output.features.dtype == torch.float32


def test_net_without_backbone_takes_features():
    net = Net(None, LinearHead(6, 3))
    x = torch.randn(2, 6)
    torch.testing.assert_close(net(x).logits, net.head(x).logits)
    assert (net.looked, net.trained) == (0, 0)


def test_training_the_same_seed_gives_the_same_bits(backbone):
    def trained():
        torch.manual_seed(0)
        net = Net(copy.deepcopy(backbone), LinearHead(16, 3, generator=torch.Generator().manual_seed(0))).train()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            net(X).logits.square().sum().backward()
            optimizer.step()
        return net.state_dict()

    one, two = trained(), trained()
    assert all(torch.equal(one[k], two[k]) for k in one)
