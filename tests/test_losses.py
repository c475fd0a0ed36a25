from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cleantune.functional import losses


def batch(B: int = 40, C: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, C, generator=g) * 3, torch.randint(C, (B,), generator=g)


def naive_p(logits: torch.Tensor, y: torch.Tensor) -> list[float]:
    out = []
    for row, label in zip(logits.double().tolist(), y.tolist(), strict=True):
        top = max(row)
        out.append(math.exp(row[label] - top) / sum(math.exp(v - top) for v in row))
    return out


def test_cross_entropy_equals_a_loop_in_float64() -> None:
    logits, y = batch()
    expected = [-math.log(p) for p in naive_p(logits, y)]
    torch.testing.assert_close(losses.cross_entropy(logits, y), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@given(q=st.floats(0.05, 1.0), seed=st.integers(0, 100))
def test_gce_equals_a_loop_in_float64(q: float, seed: int) -> None:
    logits, y = batch(seed=seed)
    expected = [(1 - p**q) / q for p in naive_p(logits, y)]
    torch.testing.assert_close(losses.gce(logits, y, q), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_gce_limits_are_cross_entropy_and_absolute_error() -> None:
    logits, y = batch()
    logits, ce = logits.double(), losses.cross_entropy(logits, y)
    assert (losses.gce(logits, y, 1e-5) - ce).abs().max() < 1e-3
    torch.testing.assert_close(losses.gce(logits, y, 0.0), ce)
    p = torch.softmax(logits, 1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(losses.gce(logits, y, 1.0), (1 - p).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_gradient_is_p_to_the_q_times_that_of_ce(q: float) -> None:
    logits, y = batch()
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses.gce(a, y, q).sum().backward()
    losses.cross_entropy(b, y).sum().backward()
    p = torch.softmax(logits, 1).gather(1, y[:, None])
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad - p**q * b.grad).abs().max() < 1e-6


def test_gce_keeps_a_gradient_at_tiny_probabilities() -> None:
    logits = torch.tensor([[12.0, 0.0]], requires_grad=True)
    losses.gce(logits, torch.tensor([1]), 0.7).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-5


def test_soft_cross_entropy_of_one_hot_is_cross_entropy() -> None:
    logits, y = batch()
    target = torch.nn.functional.one_hot(y, 7).float()
    torch.testing.assert_close(losses.soft_cross_entropy(logits, target), losses.cross_entropy(logits, y))


def test_no_gradient_flows_into_a_soft_target() -> None:
    logits, _ = batch()
    target = torch.softmax(logits, 1).requires_grad_()
    losses.soft_cross_entropy(logits.clone().requires_grad_(), target).sum().backward()
    assert target.grad is None


def test_weighted_mean_ignores_samples_of_weight_zero() -> None:
    value = losses.weighted_mean(torch.tensor([2.0, 100.0]), torch.tensor([1.0, 0.0]))
    assert value == 1.0
