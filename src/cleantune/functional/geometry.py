"""Features before and after fine-tuning: CKA, neighbors, silhouette, a linear probe, and t-SNE for the eye.

t-SNE alone proves little, so every picture of it is shown beside these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cleantune.errors import UserError

NEIGHBORS = 20
"""Neighbors that vote."""
FOLDS = 5
"""Parts of the cross-validation of the linear probe."""


@dataclass(frozen=True)
class Geometry:
    """How well a set of features separates the classes of its samples, each number a share or in -1..1."""

    cka: float
    """Linear CKA to the untouched features, unbiased."""
    neighbors: float
    """Accuracy of 20 nearest neighbors by cosine, each sample judged by the others."""
    silhouette: float
    """Mean silhouette by cosine distance: 1 is separate clusters, 0 is overlap."""
    probe: float
    """Accuracy of a linear probe on true labels, cross-validated."""


def geometry(f: Float[np.ndarray, "N D"], untouched: Float[np.ndarray, "N E"], y: Int[np.ndarray, " N"]) -> Geometry:
    """All numbers of some features.

    Args:
        f: Features after fine-tuning (or the untouched ones themselves).
        untouched: Features of the same samples before it.
        y: True labels.

    Raises:
        UserError: There are too few samples or classes for the numbers to mean anything.
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


def linear_cka(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N E"]) -> float:
    """Centered kernel alignment of two sets of features of the same samples, with linear kernels, unbiased.

    1 for equal geometry; unchanged by rotation, shift and scale of either side; 0 on average for independent features,
    whatever their width. The usual, biased estimate is far above 0 where N is not much larger than the widths.

    Args:
        a: Features.
        b: Other features of the same samples; the widths may differ.

    Raises:
        UserError: The numbers of samples differ or are below four.

    Source: Kornblith et al., ICML 2019 (arXiv:1905.00414); the unbiased HSIC is Song et al., JMLR 2012, eq. 5, put into
    CKA by Nguyen et al., ICLR 2021 (arXiv:2010.15327).
    """
    if len(a) != len(b) or len(a) < 4:
        raise UserError(f"CKA compares two sets of features of the same 4 samples or more; here are {len(a)}, {len(b)}")
    ka, kb = _kernel(a), _kernel(b)
    scale = _hsic(ka, ka) * _hsic(kb, kb)
    return float(_hsic(ka, kb) / np.sqrt(scale)) if scale > 0 else 0.0


def _kernel(x: np.ndarray) -> Float[np.ndarray, "N N"]:
    """Linear kernel without its diagonal; the shift only serves precision, since unbiased HSIC ignores it."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    kernel: np.ndarray = x @ x.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased HSIC of two kernels with zero diagonals, up to the factor n (n - 3), which CKA cancels."""
    n = len(k)
    rows_k, rows_m = k.sum(0), m.sum(0)
    mean = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + mean - 2 / (n - 2) * (rows_k @ rows_m))


def knn_accuracy(f: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], neighbors: int = NEIGHBORS) -> float:
    """Share of samples whose label is the most frequent among their nearest neighbors by cosine, themselves left out.

    With fewer samples than that, all others vote; of equally frequent labels the lowest number counts.
    """
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(neighbors, len(f) - 1), metric="cosine").fit(f)
    votes = y[near.kneighbors(return_distance=False)]
    winners = np.array([np.bincount(row).argmax() for row in votes])
    return float((winners == y).mean())


def probe_accuracy(f: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"], seed: int = 0) -> float:
    """Accuracy of a linear probe (logistic regression on standardized features), cross-validated over five parts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = np.bincount(y)
    folds = StratifiedKFold(int(min(FOLDS, sizes[sizes > 0].min())), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return float(cross_val_score(model, f, y, cv=folds).mean())


def tsne_embedding(f: Float[np.ndarray, "N D"], seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Points in the plane by t-SNE on cosine distances, begun at the first two principal components.

    The same seed serves every picture; perplexity is 30, less for fewer than 90 samples.

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
