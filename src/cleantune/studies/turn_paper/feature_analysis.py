"""Compare the features of test images before and after fine-tuning, as in Figure 2 of arXiv:2310.17668."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from cleantune.features.encoder import encode
from cleantune.functional.geometry import measure_geometry, tsne_embedding
from cleantune.pipeline.finished_run import FinishedRun

NUM_CLASSES = 10
NUM_POINTS = 1000
BATCH_SIZE = 64


def sample_rows(
    y: Int[np.ndarray, " N"], seed: int, num_classes: int = NUM_CLASSES, num_points: int = NUM_POINTS
) -> Int[np.ndarray, " M"]:
    """Return rows of at most `num_classes` random classes, equally many of each, in ascending order."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(y))[:num_classes]
    per_class = max(1, num_points // len(classes))
    rows = [rng.permutation(np.flatnonzero(y == c))[:per_class] for c in classes]
    return np.sort(np.concatenate(rows))


def analyze_features(run: FinishedRun) -> dict[str, Any]:
    """Return measures of the test features before and after training, and their t-SNE points.

    Both use the same classes, images and seed; the backbone sees each image once, without augmentation.

    Returns:
        The fields of `Geometry` after training, the same with the prefix `untouched_` before it, and `points` with the
        class and the coordinates of each image.
    """
    inputs, seed = run.inputs, run.config.run.train_seed
    y = inputs.data.rows["test"].y
    rows = sample_rows(y, seed)
    before = np.asarray(inputs.features["test"])[rows]
    after = _trained_features(run, rows)
    points = {
        "class": [inputs.data.classes[c] for c in y[rows]],
        "before": tsne_embedding(before, seed).tolist(),
        "after": tsne_embedding(after, seed).tolist(),
    }
    tuned, untouched = (asdict(measure_geometry(f, before, y[rows])) for f in (after, before))
    return {**tuned, **{f"untouched_{name}": value for name, value in untouched.items()}, "points": points}


def _trained_features(run: FinishedRun, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    backbone = run.trainer.models[0].backbone
    assert backbone is not None
    backbone.eval()
    device = next(backbone.parameters()).device
    samples, out = run.inputs.model_inputs["test"], []
    with torch.inference_mode():
        for block in torch.split(torch.as_tensor(np.asarray(rows)), BATCH_SIZE):
            features = encode(backbone, samples.eval_view(block), run.inputs.compute.inference.precision, device)
            out.append(features.float().cpu().numpy())
    return np.concatenate(out)
