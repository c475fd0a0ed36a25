"""Singular values of features, SVE and LSVR: values, invariances, bounds and errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleantune.errors import UserError
from cleantune.functional.spectrum import BLOCK, PRESETS, band_sums, lsvr, spectrum, sve

Z = np.array([[1.0, 2], [3, 4], [5, 6]])
RAW = PRESETS["paper"]


def drawn(M: int, D: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, (M, D))


def test_sve_and_lsvr_have_known_values() -> None:
    assert sve(Z, **RAW) == pytest.approx(0.2021097, rel=1e-5)
    assert lsvr(Z, **RAW) == pytest.approx(0.0525848, rel=1e-5)
    four = np.diag([4.0, 3, 2, 1])
    assert sve(four, **RAW) == pytest.approx(1.2798542, rel=1e-5)
    assert lsvr(four, **RAW) == pytest.approx(0.9162907, rel=1e-5)
    assert spectrum(four, **RAW).dominant_share == pytest.approx(0.4)
    assert spectrum(np.eye(5), **RAW).effective_rank == pytest.approx(5.0)


@pytest.mark.parametrize(("M", "D"), [(7, 30), (30, 7), (12, 12)])
@pytest.mark.parametrize("normalize", [None, "l2"])
@pytest.mark.parametrize("center", [None, "row", "column"])
def test_spectrum_equals_an_svd(M: int, D: int, normalize: str | None, center: str | None) -> None:
    x = drawn(M, D)
    expected = x / np.linalg.norm(x, axis=1, keepdims=True) if normalize else x
    if center:
        expected = expected - expected.mean(axis=1 if center == "row" else 0, keepdims=True)
    values = np.linalg.svd(expected, compute_uv=False)
    found = spectrum(x, normalize=normalize, center=center)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values, values, rtol=1e-9, atol=1e-7 * values[0])
    p = values[values > 1e-7 * values[0]] / values.sum()
    assert found.sve == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), c=st.floats(0.01, 100))
def test_spectrum_is_invariant_to_scale_order_and_rotation(seed: int, c: float) -> None:
    x, r = drawn(12, 5, seed), np.random.default_rng(seed)
    q = np.linalg.qr(r.normal(size=(5, 5)))[0]
    for other in (c * x, x[r.permutation(12)], x @ q):
        assert sve(other, **RAW) == pytest.approx(sve(x, **RAW), rel=1e-8)
        assert lsvr(other, **RAW) == pytest.approx(lsvr(x, **RAW), rel=1e-8)
    assert abs(sve(x @ q) - sve(x)) > 1e-6


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), M=st.integers(2, 15), D=st.integers(2, 15))
def test_sve_and_lsvr_are_bounded(seed: int, M: int, D: int) -> None:
    for how in PRESETS.values():
        found, most = spectrum(drawn(M, D, seed), **how), math.log(min(M, D)) + 1e-9
        assert 0 <= found.sve <= most
        assert 0 <= found.lsvr <= most


def test_presets_differ_on_features_with_an_offset() -> None:
    """Raw and l2 agree; centering removes the dominant direction."""
    x = np.random.default_rng(0).normal(2.0, 1.0, (500, 64))
    raw, code = spectrum(x, **RAW), spectrum(x, **PRESETS["official"])
    assert (raw.sve, raw.lsvr) == pytest.approx((3.783, 1.577), abs=0.02)
    assert (code.sve, code.lsvr) == pytest.approx((4.126, 3.839), abs=0.02)
    assert (code.normalize, code.center, code.samples, code.width) == ("l2", "row", 500, 64)


def test_spectrum_accepts_blocks_memmaps_and_tensors(tmp_path: Path) -> None:
    x = drawn(BLOCK + 101, 9).astype(np.float16)  # more than one block
    np.save(tmp_path / "x.npy", x)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    expected = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for form in (x, mapped, torch.from_numpy(x)):
        np.testing.assert_allclose(spectrum(form, center="column").values, expected, rtol=1e-9)


def test_band_sums_add_up_and_empty_bands_are_zero() -> None:
    shares = band_sums(np.arange(30, 0, -1.0))
    assert list(shares) == ["0-19", "20-499", "500-"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["500-"] == 0


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((0, 3)), "features [M, D]"),
        (np.zeros(3), "features [M, D]"),
        (np.ones((4, 3)), "no spectrum"),
        (np.array([[1.0, 2], [np.nan, 1]]), "row 1 (from 0)"),
    ],
)
def test_invalid_features_are_user_errors(x: np.ndarray, said: str) -> None:
    with pytest.raises(UserError) as error:
        spectrum(x)
    assert said in str(error.value)
