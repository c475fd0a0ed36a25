"""Geometry of features before and after fine-tuning: CKA, kNN accuracy, silhouette, linear probe, and t-SNE.

Every t-SNE figure is shown with these numbers, because it proves little on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cleantune.errors import UserError

NEIGHBORS = 20
"""Number of neighbors in the kNN accuracy."""
FOLDS = 5
"""Folds of the cross-validation of the linear probe."""


@dataclass(frozen=True)
class Geometry:
    """Separation of the classes in a set of features."""

    cka: float
    """Linear CKA to the pre-trained features, unbiased."""
    neighbors: float
    """Accuracy of a vote of the 20 nearest other samples by cosine."""
    silhouette: float
    """Mean silhouette by cosine distance, -1..1: 1 for separate clusters, 0 for overlap."""
    probe: float
    """Cross-validated accuracy of a linear probe on true labels."""


def measure_geometry(
    f: Float[np.ndarray, "N D"], untouched: Float[np.ndarray, "N E"], y: Int[np.ndarray, " N"]
) -> Geometry:
    """Measure the geometry of features.

    Args:
        f: Features after fine-tuning.
        untouched: Features of the same samples before fine-tuning.
        y: True labels.

    Raises:
        UserError: There are too few samples or classes.
    """
    sizes = np.bincount(y)
    if (sizes > 0).sum() < 2 or len(y) < 8 or sizes[sizes > 0].min() < 2:
        raise UserError(
            f"the analysis of features needs 2 classes, 8 samples and 2 a class at least; here are {len(y)}"
        )
    from sklearn.metrics import silhouette_score

    return Geometry(
        linear_cka(f, untouched),
        knn_accuracy(f, y),
        float(silhouette_score(f, y, metric="cosine")),
        probe_accuracy(f, y),
    )


def linear_cka(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M E"]) -> float:
    """Compute the centered kernel alignment of two sets of features with linear kernels, unbiased.

    CKA is 1 for equal geometry, invariant to rotation, shift and scale of either side, and 0 on average for independent
    features of any dimension. The usual biased estimate is far above 0 if N is not much larger than the dimensions.

    Args:
        a: Features.
        b: Other features of the same samples; the dimensions may differ.

    Raises:
        UserError: The numbers of samples differ or are below 4.

    Source: Kornblith et al., ICML 2019 (arXiv:1905.00414); the unbiased HSIC is Song et al., JMLR 2012, eq. 5, put into
    CKA by Nguyen et al., ICLR 2021 (arXiv:2010.15327).
    """
    if len(a) != len(b) or len(a) < 4:
        raise UserError(f"CKA compares two sets of features of the same 4 samples or more; here are {len(a)}, {len(b)}")
    ka, kb = _kernel(a), _kernel(b)
    scale = _hsic(ka, ka) * _hsic(kb, kb)
    return float(_hsic(ka, kb) / np.sqrt(scale)) if scale > 0 else 0.0


def _kernel(x: np.ndarray) -> Float[np.ndarray, "N N"]:
    """Return the linear kernel with a zero diagonal; unbiased HSIC ignores the shift, which improves precision."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    kernel: np.ndarray = x @ x.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Compute the unbiased HSIC of two kernels with zero diagonals, up to the factor n (n - 3), which CKA cancels."""
    n = len(k)
    rows_k, rows_m = k.sum(0), m.sum(0)
    mean = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + mean - 2 / (n - 2) * (rows_k @ rows_m))


def knn_accuracy(f: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], neighbors: int = NEIGHBORS) -> float:
    """Return the fraction of samples whose label is the most frequent among their nearest other samples by cosine.

    With fewer samples all others vote; of equally frequent labels the lowest number wins.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(neighbors, len(f) - 1), metric="cosine").fit(f)
    votes = y[search.kneighbors(return_distance=False)]
    winners = np.array([np.bincount(row).argmax() for row in votes])
    return float((winners == y).mean())


def probe_accuracy(f: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], seed: int = 0) -> float:
    """Return the accuracy of logistic regression on standardized features, cross-validated in five folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = np.bincount(y)
    folds = StratifiedKFold(int(min(FOLDS, sizes[sizes > 0].min())), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return float(cross_val_score(model, f, y, cv=folds).mean())


def tsne_embedding(f: Float[np.ndarray, "N D"], seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Compute a t-SNE embedding on cosine distances, initialized with the first two principal components.

    The perplexity is 30, or less for fewer than 90 samples.

    Source: van der Maaten & Hinton, JMLR 2008, as scikit-learn has it.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    f = np.asarray(f, np.float64)
    start = PCA(2, random_state=seed).fit_transform(f)
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, max(1.0, (len(f) - 1) / 3))
    points: np.ndarray = TSNE(2, perplexity=perplexity, metric="cosine", init=start, random_state=seed).fit_transform(f)
    return points
