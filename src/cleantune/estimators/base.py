"""Base classes of the scikit-learn estimators: from parameters to a method, from arrays to a head, to predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cleantune.config.run import build_method
from cleantune.config.schema import merge, nest
from cleantune.estimators import fit_arrays
from cleantune.methods.protocol import Method

DTYPES = [np.float32, np.float64, np.float16]
STAGE = ("epochs", "learning_rate", "weight_decay", "batch_size")
"""Parameters of the estimators that are fields of the method's stage `probe`."""


class ProbeEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of all estimators."""

    _method = ""
    preset: str | None
    random_state: Any
    device: str
    settings: Mapping[str, Any] | None

    def _make_method(self) -> Method:
        """Return the configured method; parameters that are None are the method's own.

        Raises:
            UserError: A name or a value is refused; the sentence names it.
        """
        given = {k: v for k, v in self.get_params(deep=False).items() if v is not None}
        shared = ("preset", "random_state", "device", "settings", "method")
        table: dict[str, Any] = {"scope": "head"}
        for name, value in given.items():
            if name not in shared:
                path = ["probe", name] if name in STAGE else ["mlp", name] if name == "standardize" else [name]
                table = merge(table, nest(path, value))
        for name, value in (self.settings or {}).items():
            table = merge(table, nest(name.split("."), value))
        return build_method(given.get("method", self._method), self.preset, table, None, True)

    def _fit_head(self, x: Any, y: np.ndarray, weight: Any, num_classes: int, method: Method) -> None:
        weights = _check_weights(weight, len(x))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.head_, self.history_ = fit_arrays.fit_head(method, x, y, weights, num_classes, seed, self.device)

    def _check_features(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=DTYPES)

    def _scores(self, X: Any) -> np.ndarray:
        x = self._check_features(X)
        return np.concatenate([logits for logits, _ in fit_arrays.predict_head(self.head_, x)])


class ProbeClassifier(ClassifierMixin, ProbeEstimator):  # type: ignore[misc]
    """Base of the classifiers; labels may be of any kind."""

    def fit(
        self, X: Shaped[np.ndarray, "N D"], y: Shaped[np.ndarray, " N"],
        sample_weight: Float[np.ndarray, " N"] | None = None,
    ) -> Any:  # fmt: skip
        """Train on features and given labels.

        Args:
            X: Features.
            y: Labels of any kind; the classes are their distinct values.
            sample_weight: Weight of each label, not below zero; None: equal weights. The terms of NMTune that need no
                label are not weighted.

        Returns:
            The estimator.

        Raises:
            ValueError: Shapes, values or weights are refused by scikit-learn.
            UserError: A parameter is refused; the sentence names it.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._fit_head(X, codes, sample_weight, len(self.classes_), self._make_method())
        return self

    def predict_proba(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
        """Predict the probability of every class, in the order of `classes_`."""
        p: np.ndarray = softmax(self._scores(X), axis=1)
        return p

    def predict(self, X: Shaped[np.ndarray, "N D"]) -> Shaped[np.ndarray, " N"]:
        """Predict the label of each sample."""
        codes = self._scores(X).argmax(1)  # an estimator that is not fitted has no classes
        labels: np.ndarray = self.classes_[codes]
        return labels


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ProbeEstimator):  # type: ignore[misc]
    """Base of the estimators whose head computes an embedding."""

    def transform(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """Return the embedding Z, the input of the linear classifier."""
        x = self._check_features(X)
        return np.concatenate([z for _, z in fit_arrays.predict_head(self.head_, x)])

    @property
    def _n_features_out(self) -> int:
        return int(self.n_features_in_)


class ProbeRegressor(RegressorMixin, ProbeEstimator):  # type: ignore[misc]
    """Base of the regressors: a head with a single score, trained on standardized labels."""

    def fit(
        self, X: Shaped[np.ndarray, "N D"], y: Shaped[np.ndarray, " N"],
        sample_weight: Float[np.ndarray, " N"] | None = None,
    ) -> Any:  # fmt: skip
        """Train on features and numbers by the squared error and the terms of the method.

        Args:
            X: Features.
            y: Numbers.
            sample_weight: As in `ProbeClassifier.fit`.

        Returns:
            The estimator.

        Raises:
            ValueError: Shapes, values or weights are refused by scikit-learn.
            UserError: A parameter is refused; the sentence names it.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES, y_numeric=True)
        weight = _check_weights(sample_weight, len(X))
        self.mean_ = float(np.average(y, weights=weight))
        deviation = float(np.sqrt(np.average((y - self.mean_) ** 2, weights=weight)))
        self.deviation_ = deviation if deviation > 0 else 1.0
        method = fit_arrays.as_regression(self._make_method())
        self._fit_head(X, (y - self.mean_) / self.deviation_, sample_weight, 1, method)
        return self

    def predict(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
        """Predict the number of each sample."""
        scores = self._scores(X)[:, 0]
        y: np.ndarray = self.mean_ + self.deviation_ * scores
        return y


def _check_weights(weight: Any, count: int) -> Float[np.ndarray, " N"]:
    """Return sample weights as float64; None means equal weights.

    Raises:
        ValueError: Their shape is wrong, or they are negative, not finite or all zero.
    """
    if weight is None:
        return np.ones(count)
    w = np.asarray(weight, np.float64)
    if w.ndim == 0:
        w = np.full(count, float(w))
    if w.shape != (count,):
        raise ValueError(f"sample_weight.shape == {w.shape}, expected {(count,)}!")
    if not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("Negative values in data passed to `sample_weight`, or values that are not finite")
    if not w.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return w
