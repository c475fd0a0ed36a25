"""scikit-learn estimators on arrays of features: linear probe, MLP tuning, NMTune, and probes against wrong labels.

They train through the same loop as `fit`. Features [N, D] may be float16, float32 or float64, in memory or
memory-mapped; nothing else of the data is needed, so a model behind an interface will do. Samples that are equal in
features and label are one with the sum of their weights, so a weight of 3 is a sample three times, and the order of
the samples changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
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

from cleantune import arrays
from cleantune.config import method_of
from cleantune.fields import merge, nested
from cleantune.records import Method

__all__ = ["LinearProbe", "MLPTune", "MLPTuneRegressor", "NMTune", "NMTuneRegressor", "RobustProbe"]
DTYPES = [np.float32, np.float64, np.float16]
STAGE = ("epochs", "learning_rate", "weight_decay", "batch_size")
"""Parameters of the estimators that are fields of the method's stage `probe`."""


class _Probe(BaseEstimator):  # type: ignore[misc]
    """What all estimators share: parameters to a method, arrays to a head, a head to predictions."""

    _method = ""
    preset: str | None
    random_state: Any
    device: str
    settings: Mapping[str, Any] | None

    def _configured(self) -> Method:
        """The method with what was set; parameters that are None are the method's own.

        Raises:
            UserError: A name or a value is refused; the sentence names it.
        """
        given = {k: v for k, v in self.get_params(deep=False).items() if v is not None}
        shared = ("preset", "random_state", "device", "settings", "method")
        table: dict[str, Any] = {"scope": "head"}
        for name, value in given.items():
            if name not in shared:
                path = ["probe", name] if name in STAGE else ["reshape", name] if name == "standardise" else [name]
                table = merge(table, nested(path, value))
        for name, value in (self.settings or {}).items():
            table = merge(table, nested(name.split("."), value))
        return method_of(given.get("method", self._method), self.preset, table, None, True)

    def _learn(self, x: Any, y: np.ndarray, weight: Any, classes: int, method: Method) -> None:
        given = _weights(weight, len(x))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.head_, self.history_ = arrays.trained(method, x, y, given, classes, seed, self.device)

    def _seen(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=DTYPES)

    def _scores(self, X: Any) -> np.ndarray:
        x = self._seen(X)
        return np.concatenate([logits for logits, _ in arrays.outputs(self.head_, x)])


class _Classifier(ClassifierMixin, _Probe):  # type: ignore[misc]
    """Classes of any kind."""

    def fit(
        self, X: Shaped[np.ndarray, "N D"], y: Shaped[np.ndarray, " N"],
        sample_weight: Float[np.ndarray, " N"] | None = None,
    ) -> Any:  # fmt: skip
        """Learn from features and given labels.

        Args:
            X: Features.
            y: Labels of any kind; the classes are their distinct values.
            sample_weight: How far each label counts, not below zero; None: all alike. The terms of NMTune that need no
                label do not weigh.

        Raises:
            ValueError: Shapes, values or weights that scikit-learn refuses.
            UserError: A parameter is refused; the sentence names it.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._learn(X, codes, sample_weight, len(self.classes_), self._configured())
        return self

    def predict_proba(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
        """Probability of every class, in the order of `classes_`; rows sum to 1."""
        scores = self._scores(X)
        e = np.exp(scores - scores.max(1, keepdims=True))
        p: np.ndarray = e / e.sum(1, keepdims=True)
        return p

    def predict(self, X: Shaped[np.ndarray, "N D"]) -> Shaped[np.ndarray, " N"]:
        """The most probable label of each sample."""
        codes = self._scores(X).argmax(1)
        found: np.ndarray = self.classes_[codes]
        return found


class _Reshaping(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Probe):  # type: ignore[misc]
    """Estimators whose head makes features of its own."""

    def transform(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """The reshaped features Z, what the classifier sees."""
        x = self._seen(X)
        return np.concatenate([z for _, z in arrays.outputs(self.head_, x)])

    @property
    def _n_features_out(self) -> int:
        return int(self.n_features_in_)


class _Regressor(RegressorMixin, _Probe):  # type: ignore[misc]
    """Numbers: the only score of the head, on labels that are standardised while it learns."""

    def fit(
        self, X: Shaped[np.ndarray, "N D"], y: Shaped[np.ndarray, " N"],
        sample_weight: Float[np.ndarray, " N"] | None = None,
    ) -> Any:  # fmt: skip
        """Learn from features and numbers by the squared error, with the same three terms; arguments as a classifier's.

        Raises:
            ValueError: Shapes, values or weights that scikit-learn refuses.
            UserError: A parameter is refused; the sentence names it.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES, y_numeric=True)
        weight = _weights(sample_weight, len(X))
        self.mean_ = float(np.average(y, weights=weight))
        deviation = float(np.sqrt(np.average((y - self.mean_) ** 2, weights=weight)))
        self.deviation_ = deviation if deviation > 0 else 1.0
        method = arrays.regression(self._configured())
        self._learn(X, (y - self.mean_) / self.deviation_, sample_weight, 1, method)
        return self

    def predict(self, X: Shaped[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
        """The number of each sample."""
        scores = self._scores(X)[:, 0]
        numbers: np.ndarray = self.mean_ + self.deviation_ * scores
        return numbers


def _weights(weight: Any, count: int) -> Float[np.ndarray, " N"]:
    """Sample weights as float64; None is one each.

    Raises:
        ValueError: They are not one each, below zero, not finite or all zero.
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


class LinearProbe(_Classifier):
    """A linear classifier on standardised features, by cross-entropy.

    Parameters that are None are those of the method `ce` (`cleantune methods`).

    Args:
        preset: Named settings of the method, such as `paper`.
        epochs: Passes over the samples.
        learning_rate: Of AdamW; it falls by a cosine to zero.
        weight_decay: Of AdamW.
        batch_size: Samples a step.
        settings: Any other field of the method by path, `{"probe.least_steps": 0}`.
        random_state: Seed of initial weights and order.
        device: `auto`, `cpu` or `cuda`.
    """

    _method = "ce"

    def __init__(
        self, *, preset: str | None = None, epochs: int | None = None, learning_rate: float | None = None,
        weight_decay: float | None = None, batch_size: int | None = None, settings: Mapping[str, Any] | None = None,
        random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        self.preset = preset
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.device = device


class RobustProbe(LinearProbe):
    """A linear classifier against wrong labels: by GCE, by ELR, or by TURN's cleansing on features.

    Args:
        method: `gce`, `elr` or `turn`.
        preset: As of `LinearProbe`, and so are the others.
    """

    def __init__(
        self, *, method: str = "gce", preset: str | None = None, epochs: int | None = None,
        learning_rate: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None, random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(
            preset=preset, epochs=epochs, learning_rate=learning_rate, weight_decay=weight_decay,
            batch_size=batch_size, settings=settings, random_state=random_state, device=device,
        )  # fmt: skip
        self.method = method


class MLPTune(_Reshaping, _Classifier):
    """The MLP head of NMTune with its label loss alone. Parameters that are None are those of the method `mlp`.

    Args:
        preset: `paper` or `official_code`.
        loss: `ce`, or against wrong labels `gce` or `elr`.
        q: Exponent of GCE.
        standardise: Standardise features by dimension before the MLP.
        epochs: As of `LinearProbe`, and so are the others.
    """

    _method = "mlp"

    def __init__(
        self, *, preset: str | None = None, loss: str = "ce", q: float | None = None, standardise: bool | None = None,
        epochs: int | None = None, learning_rate: float | None = None, weight_decay: float | None = None,
        batch_size: int | None = None, settings: Mapping[str, Any] | None = None, random_state: Any = 0,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.preset = preset
        self.loss = loss
        self.q = q
        self.standardise = standardise
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.device = device


class NMTune(MLPTune):
    """NMTune on features: arXiv:2309.17002. Parameters that are None are those of the method `nmtune`.

    Args:
        preset: `paper` or `official_code`.
        loss: `ce`, or against wrong labels `gce` or `elr`.
        q: Exponent of GCE.
        consistency_weight: Of the distance between features and reshaped features.
        covariance_weight: Of the covariance of different dimensions.
        dominance_weight: Of the share of the largest singular values.
        standardise: As of `MLPTune`, and so are the others.
    """

    _method = "nmtune"

    def __init__(
        self, *, preset: str | None = None, loss: str = "ce", q: float | None = None,
        consistency_weight: float | None = None, covariance_weight: float | None = None,
        dominance_weight: float | None = None, standardise: bool | None = None, epochs: int | None = None,
        learning_rate: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None, random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(
            preset=preset, loss=loss, q=q, standardise=standardise, epochs=epochs, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, settings=settings, random_state=random_state,
            device=device,
        )  # fmt: skip
        self.consistency_weight = consistency_weight
        self.covariance_weight = covariance_weight
        self.dominance_weight = dominance_weight


class MLPTuneRegressor(_Reshaping, _Regressor):
    """The MLP head of NMTune on numbers, such as the similarity of two texts, by the squared error alone.

    Args:
        preset: As of `MLPTune`, and so are the others.
    """

    _method = "mlp"

    def __init__(
        self, *, preset: str | None = None, standardise: bool | None = None, epochs: int | None = None,
        learning_rate: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None, random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        self.preset = preset
        self.standardise = standardise
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.device = device


class NMTuneRegressor(MLPTuneRegressor):
    """NMTune on numbers: the squared error and the three terms (nmtune spec 8, no. 20).

    Args:
        preset: As of `NMTune`, and so are the others.
    """

    _method = "nmtune"

    def __init__(
        self, *, preset: str | None = None, consistency_weight: float | None = None,
        covariance_weight: float | None = None, dominance_weight: float | None = None, standardise: bool | None = None,
        epochs: int | None = None, learning_rate: float | None = None, weight_decay: float | None = None,
        batch_size: int | None = None, settings: Mapping[str, Any] | None = None, random_state: Any = 0,
        device: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(
            preset=preset, standardise=standardise, epochs=epochs, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, settings=settings, random_state=random_state,
            device=device,
        )  # fmt: skip
        self.consistency_weight = consistency_weight
        self.covariance_weight = covariance_weight
        self.dominance_weight = dominance_weight
