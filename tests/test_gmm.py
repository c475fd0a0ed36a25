from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from cleantune.functional.gmm import fit_class_mixtures


def two_clusters(
    C: int = 12, n: int = 200, clean: float = 0.6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(C).repeat_interleave(n)[torch.randperm(C * n, generator=g)]
    right = torch.rand(C * n, generator=g) < clean
    low = 0.3 * torch.randn(C * n, generator=g).abs()
    high = 2.5 + 0.6 * torch.randn(C * n, generator=g)
    return torch.where(right, low, high).clamp(min=0), y, right


def naive_mixture(
    x: list[float], max_iter: int, tol: float, reg: float
) -> tuple[list[float], list[float], list[float]]:
    """EM in float64 with loops, from the best split of the sorted values."""
    x, n = sorted(x), len(x)

    def spread(part: list[float]) -> float:
        m = sum(part) / len(part)
        return sum((v - m) ** 2 for v in part)

    at = min(range(1, n), key=lambda k: spread(x[:k]) + spread(x[k:]))
    share = [[1.0, 0.0] if i < at else [0.0, 1.0] for i in range(n)]
    bound = -math.inf
    for step in range(max_iter + 1):
        if step:
            joint = [
                [w[k] * math.exp(-((v - m[k]) ** 2) / (2 * s[k])) / math.sqrt(2 * math.pi * s[k]) for k in (0, 1)]
                for v in x
            ]
            share = [[a / sum(j) for a in j] for j in joint]
            now = sum(math.log(sum(j)) for j in joint) / n
        m = [sum(r[k] * v for r, v in zip(share, x, strict=True)) / sum(r[k] for r in share) for k in (0, 1)]
        s = [
            sum(r[k] * (v - m[k]) ** 2 for r, v in zip(share, x, strict=True)) / sum(r[k] for r in share) + reg
            for k in (0, 1)
        ]
        w = [sum(r[k] for r in share) / n for k in (0, 1)]
        if step:
            if abs(now - bound) < tol:
                break
            bound = now
    return m, s, w


def test_fit_equals_em_with_loops() -> None:
    loss, y, _ = two_clusters(C=5, n=60)
    fitted = fit_class_mixtures(loss, y, 5)
    for c in range(5):
        m, s, w = naive_mixture(loss[y == c].double().tolist(), 10, 1e-2, 5e-4)
        torch.testing.assert_close(fitted.mean[c], torch.tensor(m, dtype=torch.float64), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(fitted.variance[c], torch.tensor(s, dtype=torch.float64), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(fitted.weight[c], torch.tensor(w, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_posteriors_equal_scikit_learn() -> None:
    loss, y, _ = two_clusters(C=8, n=300)
    p = fit_class_mixtures(loss, y, 8, max_iter=500, tol=1e-10).posterior(loss, y, enforce_monotone=False)
    for c in range(8):
        x = loss[y == c].double().numpy()[:, None]
        oracle = GaussianMixture(2, max_iter=500, tol=1e-10, reg_covar=5e-4, random_state=0).fit(x)
        expected = oracle.predict_proba(x)[:, oracle.means_.argmin()]
        np.testing.assert_allclose(p[y == c].numpy(), expected, atol=2e-4)


def test_clear_clusters_are_separated() -> None:
    loss, y, right = two_clusters()
    p = fit_class_mixtures(loss, y, 12).posterior(loss, y)
    assert ((p > 0.6) == right).float().mean() > 0.99


@pytest.mark.parametrize(
    "losses", [[0.7] * 30, [0.7], [0.2, 3.0], [], [math.nan] * 3 + [0.5] * 20, [math.inf, 0.1, 0.2]]
)
def test_degenerate_classes_do_not_raise(losses: list[float]) -> None:
    good, y, _ = two_clusters(C=1)
    loss = torch.cat([good, torch.tensor(losses)])
    y = torch.cat([y, torch.ones(len(losses), dtype=torch.long)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_class_mixtures(loss, y, 2)
        p = fitted.posterior(loss, y)
    assert torch.isfinite(p).all()
    mine = p[y == 1]
    finite = torch.isfinite(loss[y == 1])
    assert (mine[~finite] == 0).all()
    assert fitted.replaced == int((~finite).sum())
    if finite.any():
        assert (mine > 0.6).any()
    alone = fit_class_mixtures(good, torch.zeros(len(good), dtype=torch.long), 1)
    torch.testing.assert_close(fitted.mean[0], alone.mean[0])


def test_a_class_of_equal_losses_is_clean() -> None:
    loss = torch.full((40,), 0.3)
    assert (
        fit_class_mixtures(loss, torch.zeros(40, dtype=torch.long), 1).posterior(
            loss, torch.zeros(40, dtype=torch.long)
        )
        == 1
    ).all()


def test_a_small_class_keeps_its_lower_half() -> None:
    loss = torch.tensor([0.1, 5.0, 0.2, 4.0, 0.3])
    y = torch.zeros(5, dtype=torch.long)
    assert fit_class_mixtures(loss, y, 1).posterior(loss, y).tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


@given(seed=st.integers(0, 1000), clean=st.floats(0.1, 0.9))
def test_the_monotone_posterior_falls_with_the_loss(seed: int, clean: float) -> None:
    loss, y, _ = two_clusters(C=1, n=80, clean=clean, seed=seed)
    fitted = fit_class_mixtures(loss, y, 1)
    grid = torch.linspace(0, 8, 400)
    p = fitted.posterior(grid, torch.zeros(400, dtype=torch.long))
    assert (p[grid >= fitted.mean[0, 1]] == 0).all()
    assert (p[grid <= fitted.mean[0, 0]] >= 0.999).all()
    assert (p.clamp(max=0.999).diff() <= 1e-6).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_fit_ignores_the_order_of_samples(seed: int) -> None:
    loss, y, _ = two_clusters(C=3, n=50, seed=seed)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
    a, b = fit_class_mixtures(loss, y, 3), fit_class_mixtures(loss[order], y[order], 3)
    torch.testing.assert_close(a.posterior(loss, y)[order], b.posterior(loss[order], y[order]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", ["none", "class", "global"])
def test_classes_are_independent_unless_scaled_globally(normalize: str) -> None:
    loss, y, _ = two_clusters(C=2)
    other = torch.where(y == 1, loss * 5 + 1, loss)
    a = fit_class_mixtures(loss, y, 2, normalize=normalize).posterior(loss, y)[y == 0]
    b = fit_class_mixtures(other, y, 2, normalize=normalize).posterior(other, y)[y == 0]
    assert torch.allclose(a, b) == (normalize != "global")


def test_large_offsets_lose_no_precision() -> None:
    loss, y, _ = two_clusters(C=4)
    a, b = fit_class_mixtures(loss.double(), y, 4), fit_class_mixtures(loss.double() + 1e5, y, 4)
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-4, atol=1e-6)


def test_fit_without_a_finite_loss_raises() -> None:
    with pytest.raises(ValueError, match="no loss is finite"):
        fit_class_mixtures(torch.full((20,), math.nan), torch.zeros(20, dtype=torch.long), 1)


def test_blocks_and_threads_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from cleantune.functional import gmm

    loss, y, _ = two_clusters(C=7, n=90)
    loss, y = torch.cat([loss, torch.tensor([0.4, 0.2])]), torch.cat([y, torch.tensor([9, 11])])
    whole = fit_class_mixtures(loss, y, 12, max_iter=50, tol=1e-9)
    p = whole.posterior(loss, y)
    for rows, threads in ((64, 1), (200, 1), (200, 3)):  # smaller than a class, and a few classes
        monkeypatch.setattr(gmm, "ROWS", rows)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        other = fit_class_mixtures(loss, y, 12, max_iter=50, tol=1e-9)
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.variance, whole.variance, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.posterior(loss, y), p, rtol=1e-6, atol=1e-7)
        monkeypatch.undo()
    torch.set_num_threads(1)
