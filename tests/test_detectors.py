"""Single detectors against cleanlab and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cleantune.functional.knn import build_neighbor_graph
from cleantune.label_quality import detectors
from cleantune.label_quality.scores import score_probabilities


def probabilities(count: int = 400, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Random probabilities, and labels of which three quarters are the most probable class."""
    p = torch.softmax(2 * torch.randn(count, num_classes), 1).double()
    y = p.argmax(1)
    y[::4] = torch.randint(num_classes, (len(y[::4]),))
    return p, y


def test_confident_learning_equals_cleanlab() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    p, y = probabilities()
    ours = score_probabilities(p, y).detectors["confident_learning"].numpy()
    theirs = rank.get_label_quality_scores(y.numpy(), p.numpy(), adjust_pred_probs=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["self_confidence", "confident_learning", "gce_mixture"])
def test_detectors_rank_contradicted_labels_lowest(name: str) -> None:
    p = torch.full((60, 3), 0.05).double()
    y = torch.arange(60) % 3
    p[torch.arange(60), y] = torch.linspace(0.8, 0.9, 60).double()
    p[:6] = torch.roll(p[:6], 1, 1)
    values = score_probabilities((p / p.sum(1, keepdim=True)).float(), y).detectors[name]
    assert ((values >= 0) & (values <= 1)).all()
    assert values[:6].max() < values[6:].min()


def test_distance_ratio_equals_a_loop_over_pairs() -> None:
    y = torch.arange(60) % 3
    x = 3 * torch.randn(3, 12)[y] + torch.randn(60, 12)
    graph = build_neighbor_graph(x.numpy(), x.mean(0), 59)
    ours = detectors.distance_ratio_score(graph.index, graph.similarity, y)
    unit = functional.normalize(x - x.mean(0), dim=1)
    d = 1 - unit @ unit.T
    for i in range(60):
        same = min(float(d[i, j]) for j in range(60) if j != i and y[j] == y[i]) ** 2
        other = min(float(d[i, j]) for j in range(60) if y[j] != y[i]) ** 2
        assert float(ours[i]) == pytest.approx(other / (same + other), abs=1e-3)
