"""Likelihood of a noise model against loops and autograd, and the search against a known maximum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cleantune.label_quality.noise_likelihood import Likelihood, Parameters, maximize_likelihood

LOCAL = ("local", "local_log_s")


def problem(
    count: int, classes: int, strata: int, sharpness: float | None
) -> tuple[Tensor, Tensor, Tensor, Parameters]:
    g = torch.Generator().manual_seed(count + classes + strata)
    lp = torch.log_softmax(2 * torch.randn(count, classes, generator=g), 1)
    y = torch.randint(classes, (count,), generator=g)
    stratum = torch.randint(strata, (count,), generator=g)
    at = {
        "named": torch.randn(classes, classes, generator=g),
        "rate": torch.randn(classes, generator=g),
        "level": torch.randn(strata, generator=g),
        "log_s": torch.tensor(math.log(sharpness or 1.3)),
        "local": torch.tensor(-0.4),
        "local_log_s": torch.tensor(0.3),
    }
    return lp, y, stratum, at


def naive(lp: Tensor, y: Tensor, stratum: Tensor, at: Parameters, strata: int) -> Tensor:
    """A loop over samples and true classes, in float64."""
    total = lp.new_zeros((), dtype=torch.float64)
    classes = lp.shape[1]
    for row, j, b in zip(lp.double(), y.tolist(), stratum.tolist(), strict=True):
        m, q = torch.softmax(at["log_s"].exp() * row, 0), torch.softmax(at["local_log_s"].exp() * row, 0)
        p = lp.new_zeros((), dtype=torch.float64)
        for k in range(classes):
            nu = torch.sigmoid(at["rate"][k] + at["level"][b])
            if k == j:
                p = p + m[k] * (1 - nu)
                continue
            wrong = [c for c in range(classes) if c != k]
            named = torch.softmax(at["named"][k, wrong], 0)[wrong.index(j)]
            if strata > 1:
                w = torch.sigmoid(at["local"])
                named = (1 - w) * named + w * (q[j] / (1 - q[k])).clamp(max=1)
            p = p + m[k] * nu * named
        total = total + p.clamp(min=1e-12).log()
    return total / len(y)


@pytest.mark.parametrize(
    ("classes", "strata", "sharpness"), [(4, 1, None), (4, 1, 1.7), (5, 3, None), (3, 8, 2.2), (2, 2, 1.1)]
)
def test_value_and_gradient_equal_a_loop_and_autograd(
    classes: int, strata: int, sharpness: float | None
) -> None:
    lp, y, stratum, at = problem(60, classes, strata, sharpness)
    value, slope = Likelihood(lp, y, stratum, strata, sharpness)(at)
    free = {name: v.double().clone().requires_grad_() for name, v in at.items()}
    expected = naive(lp, y, stratum, free, strata)
    expected.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(float(expected.detach()), abs=1e-5)
    names = {"named", "rate", "level"} | ({"log_s"} if sharpness is None else set())
    assert set(slope) == names | (set(LOCAL) if strata > 1 else set())
    for name, got in slope.items():
        want = free[name].grad
        torch.testing.assert_close(got.double(), torch.zeros_like(free[name]) if want is None else want,
                                   atol=2e-5, rtol=1e-4)  # fmt: skip


def test_a_class_without_labels_leaves_the_others_finite() -> None:
    lp, y, stratum, at = problem(40, 4, 1, None)
    y[y == 2] = 3
    value, slope = Likelihood(lp, y, stratum, 1, None)(at)
    assert value == pytest.approx(float(naive(lp, y, stratum, at, 1)), abs=1e-5)
    assert all(bool(torch.isfinite(v).all()) for v in slope.values())


def test_the_search_reaches_a_maximum_and_keeps_fixed_values() -> None:
    top = torch.tensor([[1.0, -2.0], [0.5, 3.0]])

    def hill(at: Parameters) -> tuple[float, Parameters]:
        away = at["a"] - top
        return -float((away.square() * torch.tensor([1.0, 30.0])).sum()), {"a": -2 * away * torch.tensor([1.0, 30.0])}

    found = maximize_likelihood(hill, {"a": torch.zeros(2, 2), "b": torch.tensor(7.0)}, ["a"], 50, 10_000)
    torch.testing.assert_close(found["a"], top, atol=1e-3, rtol=0)
    assert float(found["b"]) == 7.0
