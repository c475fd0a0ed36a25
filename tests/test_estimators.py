"""Estimators on arrays: scikit-learn's checks, invariances, and the claims of NMTune."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_regression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cleantune.errors import UserError
from cleantune.estimators.classifiers import (
    LinearProbe,
    MLPTune,
    MLPTuneRegressor,
    NMTune,
    NMTuneRegressor,
    RobustProbe,
)
from cleantune.functional.spectrum import lsvr, sve

SHORT = {"probe.min_steps": 60}
ALL = [LinearProbe, RobustProbe, MLPTune, NMTune]


@parametrize_with_checks(
    [
        LinearProbe(settings=SHORT, learning_rate=1e-2, epochs=10),
        MLPTune(settings=SHORT, epochs=10),
        NMTune(settings=SHORT, epochs=10),
        NMTuneRegressor(settings=SHORT, epochs=10),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_estimators_pass_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def digits(count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:count] / 16.0, y[:count]


def blobs(seed: int = 0, size: int = 400, width: int = 24, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    y = r.integers(classes, size=size)
    return r.normal(size=(classes, width))[y] * 1.2 + r.normal(size=(size, width)), y


def test_estimators_work_in_pipeline_and_grid_search() -> None:
    x, y = digits()
    predicted = cross_val_predict(make_pipeline(StandardScaler(), NMTune()), x, y, cv=2)
    assert (predicted == y).mean() > 0.8
    grid = GridSearchCV(NMTune(settings=SHORT, epochs=3), {"cov_weight": [0.0, 0.1]}, cv=2).fit(x, y)
    assert set(grid.best_params_) == {"cov_weight"}


@pytest.mark.parametrize("cls", ALL)
def test_predictions_do_not_depend_on_dtype_or_memory_map(cls: Any, tmp_path: Path) -> None:
    x, y = blobs()
    x = x.astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    model = cls(settings=SHORT)
    expected = clone(model).fit(x.astype(np.float64), y).predict_proba(x.astype(np.float64))
    for form in (x, x.astype(np.float32), np.load(tmp_path / "x.npy", mmap_mode="r")):
        np.testing.assert_array_equal(clone(model).fit(form, y).predict_proba(form), expected)


@pytest.mark.parametrize("cls", ALL)
def test_zero_weights_and_order_have_no_effect(cls: Any) -> None:
    x, y = blobs()
    wrong = np.random.default_rng(1).random(len(y)) < 0.4
    given = np.where(wrong, (y + 1) % 4, y)
    right = cls(settings=SHORT).fit(x, given, sample_weight=(~wrong).astype(float))
    alone = cls(settings=SHORT).fit(x[~wrong][::-1], y[~wrong][::-1])
    np.testing.assert_array_equal(right.predict_proba(x), alone.predict_proba(x))


def test_nmtune_without_terms_equals_mlp_tuning_bitwise() -> None:
    x, y = blobs()
    zeros = NMTune(mse_weight=0.0, cov_weight=0.0, svd_weight=0.0, settings=SHORT).fit(x, y)
    np.testing.assert_array_equal(zeros.transform(x), MLPTune(settings=SHORT).fit(x, y).transform(x))


def test_nmtune_raises_sve_and_lowers_lsvr() -> None:
    """The claims of arXiv:2309.17002 on SVE and LSVR, with the preset `official`."""
    x, y = digits(1797)
    for seed in range(2):
        mlp, nm = (
            cls(preset="official", random_state=seed).fit(x[::2], y[::2]).transform(x[1::2])
            for cls in (MLPTune, NMTune)
        )
        assert sve(nm, normalize=None, center=None) > sve(mlp, normalize=None, center=None)
        assert lsvr(nm, normalize=None, center=None) < lsvr(mlp, normalize=None, center=None)


def test_pretraining_noise_spreads_the_spectrum() -> None:
    """The SVE of the features of a small network does not fall as its label noise rises from 0 to 60 %."""
    x, y = digits(1000)
    r = np.random.default_rng(0)
    spread = []
    for gamma in (0.0, 0.6):
        flipped = np.where(r.random(len(y)) < gamma, (y + r.integers(1, 10, len(y))) % 10, y)
        features = MLPTune(preset="paper", random_state=0).fit(x, flipped).transform(x)
        spread.append(sve(features, normalize="l2", center="row"))
    assert spread[1] >= spread[0]


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_history_has_every_component_of_the_loss(preset: str) -> None:
    x, y = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = NMTune(preset=preset, loss="gce", epochs=2).fit(x, y).history_[-1]
    assert {"loss_gce", "loss_consistency", "loss_covariance", "loss_dominance"} <= set(row)
    weights = {"paper": (0.01, 0.01, 0.01), "official": (1.0, 0.04, 0.001)}[preset]
    parts = [row[f"loss_{name}"] for name in ("consistency", "covariance", "dominance")]
    assert row["loss"] == pytest.approx(row["loss_gce"] + sum(w * p for w, p in zip(weights, parts, strict=True)), 1e-5)


def test_unscaled_features_warn_and_standardizing_helps() -> None:
    x, y = blobs()
    with pytest.warns(UserWarning, match="the covariance term is .* at the first step"):
        NMTune(standardize=False, epochs=1, settings=SHORT).fit(100 * x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NMTune(standardize=True).fit(100 * x, y).score(100 * x, y) > 0.95


def test_robust_losses_help_nmtune_on_noisy_labels() -> None:
    """Mean accuracy over three draws of the noise."""
    x, y = blobs(size=1200)
    accuracy = {"ce": 0.0, "gce": 0.0, "elr": 0.0}
    for seed in range(3):
        r = np.random.default_rng(seed)
        given = np.where(r.random(800) < 0.7, r.integers(4, size=800), y[:800])
        for loss in accuracy:
            accuracy[loss] += NMTune(loss=loss).fit(x[:800], given).score(x[800:], y[800:]) / 3
    assert accuracy["gce"] > accuracy["ce"] + 0.01
    assert accuracy["elr"] > accuracy["ce"] + 0.02


@pytest.mark.parametrize("cls", [MLPTuneRegressor, NMTuneRegressor])
def test_regressors_predict_on_the_scale_of_the_labels(cls: Any) -> None:
    x, y = make_regression(300, 10, noise=1.0, random_state=0)
    y = 3.0 + 0.02 * y
    model = cls(epochs=30).fit(x[:200], y[:200])
    assert model.score(x[200:], y[200:]) > 0.8
    assert "loss_squared_error" in model.history_[0]
    assert model.transform(x).shape == x.shape


def test_fit_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    LinearProbe(settings=SHORT).fit(*blobs(size=40))
    assert torch.equal(torch.rand(2), expected)


def test_robust_probe_is_not_below_the_linear_probe() -> None:
    x, y = blobs(size=800)
    r = np.random.default_rng(0)
    given = np.where(r.random(400) < 0.5, r.integers(4, size=400), y[:400])
    robust = RobustProbe(method="robust").fit(x[:400], given).score(x[400:], y[400:])
    assert robust >= LinearProbe().fit(x[:400], given).score(x[400:], y[400:])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NMTune(preset="papers"), 'no preset "papers"; did you mean "paper"'),
        (NMTune(loss="mse"), 'key "method.loss" is "mse"'),
        (NMTune(settings={"mlp.layer": 2}), 'unknown key "method.mlp.layer"; did you mean "layers"'),
        (RobustProbe(method="gcee"), 'unknown method "gcee"; did you mean "gce"'),
    ],
)
def test_invalid_parameter_is_refused_by_name(model: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        model.fit(*blobs(size=40))
    assert message in str(error.value)
