"""Label scores of an audit, with the neighbors that duplicates, outliers and trusted examples come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from cleantune.functional.knn import NeighborGraph, Progress, build_neighbor_graph, neighbor_votes, outlier_scores
from cleantune.label_quality import detectors
from cleantune.label_quality.scores import LabelScores, score_labels

NUM_NEIGHBORS = 15


@dataclass(frozen=True)
class AuditScores:
    """Label scores with the graph of nearest neighbors."""

    labels: LabelScores
    graph: NeighborGraph | None = None
    """Neighbors by frozen features, None where probabilities were given."""
    outlier_score: Float[Tensor, " N"] | None = None
    """1 minus the mean cosine to the neighbors."""


def score_features(
    features: Any,
    y: Int[Tensor, " N"],
    num_classes: int,
    *,
    num_train: int | None = None,
    beta: float = 1.0,
    annotators: Int[np.ndarray, "A N"] | None = None,
    progress: Progress | None = None,
) -> AuditScores:
    """Score labels by frozen features, and find the neighbors of every sample.

    Args:
        features: [N, D], an array or memory-mapped.
        y: Given labels.
        num_classes: C.
        num_train: Number of leading samples that probe and noise model are fitted on; None takes all.
        beta: As in `score_labels`.
        annotators: As in `score_labels`.
        progress: Called with the number of samples whose neighbors are known, and N.
    """
    n = len(y) if num_train is None else num_train
    held_out = None if n == len(y) else (features[n:], y[n:])
    scores = score_labels(features[:n], y[:n], num_classes, held_out=held_out, beta=beta, annotators=annotators)
    assert scores.probe is not None
    graph = build_neighbor_graph(features, scores.probe.mean, NUM_NEIGHBORS, progress=progress)
    scores.detectors |= {
        "neighbor_agreement": detectors.agreement_score(neighbor_votes(graph, y, num_classes), y),
        "distance_ratio": detectors.distance_ratio_score(graph.index, graph.similarity, y),
    }
    return AuditScores(scores, graph, outlier_scores(graph))
