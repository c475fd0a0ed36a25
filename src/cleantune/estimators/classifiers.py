"""scikit-learn estimators on arrays of features: linear probe, MLP tuning, NMTune, and robust probes.

They use the same trainer as `fit`. Features [N, D] may be float16, float32 or float64, in memory or memory-mapped.
Nothing but features is needed, so they also work with models behind an API. Samples with equal features and labels
are merged and their weights added, so a weight of 3 equals three copies, and the order of the samples has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleantune.estimators.base import EmbeddingTransformer, ProbeClassifier, ProbeRegressor

__all__ = ["LinearProbe", "MLPTune", "MLPTuneRegressor", "NMTune", "NMTuneRegressor", "RobustProbe"]


class LinearProbe(ProbeClassifier):
    """Linear classifier on standardized features, trained by cross-entropy.

    Parameters that are None keep the defaults of the method `ce` (see `cleantune methods ce`).

    Args:
        preset: Named settings of the method, such as `paper`.
        epochs: Passes over the samples.
        learning_rate: Initial learning rate of AdamW, with cosine decay to zero.
        weight_decay: Weight decay of AdamW.
        batch_size: Samples of an optimizer step.
        settings: Further fields of the method by path, `{"probe.min_steps": 0}`.
        random_state: Seed of initial weights and order.
        device: `auto`, `cpu` or `cuda`.

    Example:
        >>> from cleantune.estimators import LinearProbe
        >>> LinearProbe(epochs=5).fit(features, labels).predict(features)  # doctest: +SKIP
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
    """A linear classifier against wrong labels: by GCE, ELR or `robust` on features.

    Args:
        method: `gce`, `elr` or `robust`.
        preset: As in `LinearProbe`, like the other parameters.
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


class MLPTune(EmbeddingTransformer, ProbeClassifier):
    """MLP head of NMTune with its label loss alone. Parameters that are None keep the defaults of the method `mlp`.

    Args:
        preset: `paper` or `official`.
        loss: `ce`, or a robust loss, `gce` or `elr`.
        q: Exponent of GCE.
        standardize: Standardize each dimension of the features before the MLP.
        epochs: As in `LinearProbe`, like the other parameters.
    """

    _method = "mlp"

    def __init__(
        self, *, preset: str | None = None, loss: str = "ce", q: float | None = None, standardize: bool | None = None,
        epochs: int | None = None, learning_rate: float | None = None, weight_decay: float | None = None,
        batch_size: int | None = None, settings: Mapping[str, Any] | None = None, random_state: Any = 0,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.preset = preset
        self.loss = loss
        self.q = q
        self.standardize = standardize
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.device = device


class NMTune(MLPTune):
    """NMTune (arXiv:2309.17002) on features. Parameters that are None keep the defaults of the method `nmtune`.

    Args:
        preset: `paper` or `official`.
        loss: `ce`, or a robust loss, `gce` or `elr`.
        q: Exponent of GCE.
        mse_weight: Weight of the distance between features and embedding (L_MSE).
        cov_weight: Weight of the covariance between dimensions (L_COV).
        svd_weight: Weight of the share of the largest singular values (L_SVD).
        standardize: As in `MLPTune`, like the other parameters.
    """

    _method = "nmtune"

    def __init__(
        self, *, preset: str | None = None, loss: str = "ce", q: float | None = None,
        mse_weight: float | None = None, cov_weight: float | None = None,
        svd_weight: float | None = None, standardize: bool | None = None, epochs: int | None = None,
        learning_rate: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None, random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(
            preset=preset, loss=loss, q=q, standardize=standardize, epochs=epochs, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, settings=settings, random_state=random_state,
            device=device,
        )  # fmt: skip
        self.mse_weight = mse_weight
        self.cov_weight = cov_weight
        self.svd_weight = svd_weight


class MLPTuneRegressor(EmbeddingTransformer, ProbeRegressor):
    """MLP head of NMTune on numbers, such as the similarity of two texts, trained by the squared error alone.

    Args:
        preset: As in `MLPTune`, like the other parameters.
    """

    _method = "mlp"

    def __init__(
        self, *, preset: str | None = None, standardize: bool | None = None, epochs: int | None = None,
        learning_rate: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None, random_state: Any = 0, device: str = "auto",
    ) -> None:  # fmt: skip
        self.preset = preset
        self.standardize = standardize
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.device = device


class NMTuneRegressor(MLPTuneRegressor):
    """NMTune on numbers: the squared error and the three regularization terms.

    Args:
        preset: As in `NMTune`, like the other parameters.
    """

    _method = "nmtune"

    def __init__(
        self, *, preset: str | None = None, mse_weight: float | None = None,
        cov_weight: float | None = None, svd_weight: float | None = None, standardize: bool | None = None,
        epochs: int | None = None, learning_rate: float | None = None, weight_decay: float | None = None,
        batch_size: int | None = None, settings: Mapping[str, Any] | None = None, random_state: Any = 0,
        device: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(
            preset=preset, standardize=standardize, epochs=epochs, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, settings=settings, random_state=random_state,
            device=device,
        )  # fmt: skip
        self.mse_weight = mse_weight
        self.cov_weight = cov_weight
        self.svd_weight = svd_weight
