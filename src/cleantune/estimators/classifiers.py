"""scikit-learn estimators on arrays of features: linear probe, MLP tuning, NMTune, and probes against wrong labels.

They train through the same loop as `fit`. Features [N, D] may be float16, float32 or float64, in memory or
memory-mapped; nothing else of the data is needed, so a model behind an interface will do. Samples that are equal in
features and label are one with the sum of their weights, so a weight of 3 is a sample three times, and the order of
the samples changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleantune.estimators.base import EmbeddingTransformer, ProbeClassifier, ProbeRegressor

__all__ = ["LinearProbe", "MLPTune", "MLPTuneRegressor", "NMTune", "NMTuneRegressor", "RobustProbe"]


class LinearProbe(ProbeClassifier):
    """A linear classifier on standardized features, by cross-entropy.

    Parameters that are None are those of the method `ce` (`cleantune methods`).

    Args:
        preset: Named settings of the method, such as `paper`.
        epochs: Passes over the samples.
        learning_rate: Of AdamW; it falls by a cosine to zero.
        weight_decay: Of AdamW.
        batch_size: Samples a step.
        settings: Any other field of the method by path, `{"probe.min_steps": 0}`.
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
    """A linear classifier against wrong labels: by GCE, ELR or `robust` on features.

    Args:
        method: `gce`, `elr` or `robust`.
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


class MLPTune(EmbeddingTransformer, ProbeClassifier):
    """The MLP head of NMTune with its label loss alone. Parameters that are None are those of the method `mlp`.

    Args:
        preset: `paper` or `official`.
        loss: `ce`, or against wrong labels `gce` or `elr`.
        q: Exponent of GCE.
        standardize: Standardize features by dimension before the MLP.
        epochs: As of `LinearProbe`, and so are the others.
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
    """NMTune on features: arXiv:2309.17002. Parameters that are None are those of the method `nmtune`.

    Args:
        preset: `paper` or `official`.
        loss: `ce`, or against wrong labels `gce` or `elr`.
        q: Exponent of GCE.
        mse_weight: Of the distance between features and reshaped features.
        cov_weight: Of the covariance of different dimensions.
        svd_weight: Of the share of the largest singular values.
        standardize: As of `MLPTune`, and so are the others.
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
    """The MLP head of NMTune on numbers, such as the similarity of two texts, by the squared error alone.

    Args:
        preset: As of `MLPTune`, and so are the others.
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
    """NMTune on numbers: the squared error and the three terms (nmtune spec 8, no. 20).

    Args:
        preset: As of `NMTune`, and so are the others.
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
