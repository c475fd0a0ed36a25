"""Tests of classification heads."""

import torch
from torch import nn

from cleantune.functional.standardize import mean_and_std
from cleantune.training.heads import LinearHead


def test_linear_head_scores_standardized_features():
    x = torch.randn(20, 6) * 50 + 7
    head = LinearHead(6, 3, standardize=mean_and_std(x), generator=torch.Generator().manual_seed(0))
    output = head(x)
    torch.testing.assert_close(output.embedding, (x - x.mean(0)) / x.std(0, correction=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, output.embedding @ head.linear.weight.T + head.linear.bias)
    assert torch.equal(output.features, x)


def test_linear_head_scores_are_equal_with_and_without_grad():
    g = torch.Generator().manual_seed(2)
    f = 5 + 3 * torch.randn(40, 7, generator=g)
    head = LinearHead(7, 4, standardize=mean_and_std(f), generator=g)
    with torch.no_grad():
        head.linear.bias.normal_(generator=g)
        evaluated = head(f).logits
    assert not evaluated.requires_grad
    torch.testing.assert_close(evaluated, head(f).logits.detach(), rtol=1e-5, atol=1e-6)


def test_linear_head_exports_to_aten_operators():
    head = LinearHead(7, 4, generator=torch.Generator().manual_seed(2)).eval()
    with torch.no_grad():
        program = torch.export.export(head, (torch.zeros(3, 7),))
    assert {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"} == {"aten"}


def test_raw_weights_score_raw_features_alike():
    x = torch.randn(20, 6) * 50 + 700
    head = LinearHead(6, 3, standardize=mean_and_std(x))
    nn.init.normal_(head.linear.bias)
    weight, bias = head.raw_weights()
    torch.testing.assert_close(
        x.double() @ weight.double().T + bias.double(), head(x).logits.double(), rtol=1e-4, atol=1e-4
    )


def test_linear_head_draws_weights_from_its_generator():
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


def test_linear_head_stays_in_float32_under_autocast():
    head = LinearHead(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(torch.randn(2, 6).bfloat16())
    assert output.logits.dtype == output.embedding.dtype == output.features.dtype == torch.float32
