"""The three regularizers of NMTune: values, gradients, invariances and bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cleantune.functional.losses import consistency, covariance, dominant_singular_value, singular_values

F = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
Z = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
SHAPES = [(3, 2), (8, 20), (20, 8), (6, 6)]


def drawn(B: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_terms_have_the_published_values() -> None:
    assert float(consistency(F, Z)) == pytest.approx(0.5045955, rel=1e-5)
    assert float(consistency(F, Z, "element_mean")) == pytest.approx(0.2522977, rel=1e-5)
    assert float(covariance(Z)) == pytest.approx(16.0, rel=1e-5)
    assert singular_values(Z).tolist() == pytest.approx([0.514301, 9.525518], rel=1e-5)
    assert float(dominant_singular_value(Z)) == pytest.approx(-0.9487739, rel=1e-5)
    assert float(dominant_singular_value(Z, top_k=5, reduction="mean")) == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_gradients_equal_finite_differences(B: int, D: int) -> None:
    z = drawn(B, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(singular_values, (z,))
    for term in (covariance, dominant_singular_value):
        (gradient,) = torch.autograd.grad(term(z), z)
        for b, d in ((0, 0), (B - 1, D // 2)):
            step = torch.zeros_like(z)
            step[b, d] = 1e-2
            slope = (float(term((z + step).detach())) - float(term((z - step).detach()))) / 2e-2
            assert float(gradient[b, d]) == pytest.approx(slope, rel=2e-3, abs=2e-5)


@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_terms_equal_naive_formulas(B: int, D: int) -> None:
    f, z = drawn(B, D, 1, torch.float64), drawn(B, D, 2, torch.float64)
    rows = [((a / a.norm() - b / b.norm()) ** 2).sum() for a, b in zip(f, z, strict=True)]
    assert float(consistency(f, z)) == pytest.approx(float(sum(rows)) / B, rel=1e-5)
    c = torch.cov(z.T)
    off = sum(float(c[i, j]) ** 2 for i in range(D) for j in range(D) if i != j)
    assert float(covariance(z)) == pytest.approx(off / D, rel=1e-5)
    sigma = torch.linalg.svdvals(z)
    torch.testing.assert_close(singular_values(z).flip(0), sigma)
    assert float(dominant_singular_value(z, 2)) == pytest.approx(-float(sigma[:2].sum() / sigma.sum()), rel=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), c=st.floats(0.05, 20))
def test_terms_have_their_invariances(seed: int, c: float) -> None:
    f, z = drawn(10, 6, seed, torch.float64), drawn(10, 6, seed + 1, torch.float64)
    close = {"rel": 2e-5, "abs": 1e-6}
    assert float(consistency(f, c * z)) == pytest.approx(float(consistency(f, z)), **close)
    assert float(dominant_singular_value(c * z)) == pytest.approx(float(dominant_singular_value(z)), **close)
    assert float(covariance(c * z)) == pytest.approx(c**4 * float(covariance(z)), rel=1e-4)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    assert float(consistency(f[order], z[order])) == pytest.approx(float(consistency(f, z)), **close)
    assert float(covariance(z[order])) == pytest.approx(float(covariance(z)), **close)
    assert float(dominant_singular_value(z[order])) == pytest.approx(float(dominant_singular_value(z)), **close)
    q = torch.linalg.qr(drawn(6, 6, seed + 2, torch.float64)).Q
    assert float(dominant_singular_value(z @ q)) == pytest.approx(float(dominant_singular_value(z)), **close)


def test_a_rotation_changes_the_covariance_term() -> None:
    z = drawn(50, 4) * torch.tensor([3.0, 1, 1, 1])
    q = torch.linalg.qr(drawn(4, 4, 5)).Q
    assert float(covariance(z @ q)) > 2 * float(covariance(z))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), B=st.integers(2, 12), D=st.integers(1, 12))
def test_consistency_and_dominance_are_bounded(seed: int, B: int, D: int) -> None:
    f, z = drawn(B, D, seed), drawn(B, D, seed + 1)
    assert -1e-6 <= float(consistency(f, z)) <= 4 + 1e-6
    assert -1 - 1e-6 <= float(dominant_singular_value(z)) <= -1 / min(B, D) + 1e-6
    assert float(consistency(z, -z)) == pytest.approx(4.0, rel=1e-5)


def test_reductions_agree_up_to_their_factor() -> None:
    f, z = drawn(9, 5), drawn(9, 5, 1)
    assert float(consistency(f, z, "element_mean")) == pytest.approx(float(consistency(f, z)) / 5, rel=1e-5)
    assert float(dominant_singular_value(z, 1, "mean")) == float(dominant_singular_value(z, 1, "sum"))


def test_equal_singular_values_have_a_finite_gradient() -> None:
    for z in (torch.eye(4, 6), torch.ones(5, 7), torch.zeros(3, 4), torch.eye(3).repeat(2, 1)):
        z = z.clone().requires_grad_()
        dominant_singular_value(z).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()
    assert float(dominant_singular_value(torch.ones(5, 7))) == pytest.approx(-1.0)


def test_non_finite_inputs_give_non_finite_terms() -> None:
    assert math.isnan(float(dominant_singular_value(torch.full((3, 4), torch.nan))))


def test_features_get_no_gradient_and_one_row_raises() -> None:
    f, z = drawn(4, 3).requires_grad_(), drawn(4, 3, 1).requires_grad_()
    consistency(f, z).backward()  # type: ignore[no-untyped-call]
    assert f.grad is None
    assert z.grad is not None
    with pytest.raises(ValueError, match="at least 2 rows"):
        covariance(z[:1])
