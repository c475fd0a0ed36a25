"""Figure 2: the features of test images before and after fine-tuning, as numbers and as points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from cleantune.features.encoder import encode
from cleantune.functional.geometry import measure_geometry, tsne_embedding
from cleantune.pipeline.inputs import RunInputs
from cleantune.training.trainer import Trainer

CLASSES = 10
POINTS = 1000


def chosen(y: Int[np.ndarray, " N"], seed: int, classes: int = CLASSES, points: int = POINTS) -> Int[np.ndarray, " M"]:
    """Rows of up to ten random classes, as many of each, in the order of the rows."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.unique(y))[:classes]
    each = max(1, points // len(drawn))
    rows = [rng.permutation(np.flatnonzero(y == c))[:each] for c in drawn]
    return np.sort(np.concatenate(rows))


def look(run: Trainer, material: RunInputs, seed: int) -> dict[str, Any]:
    """Numbers of the test features after training and of the untouched ones, and their points in the plane.

    The same classes, images and seed serve before and after. The backbone sees each image once, in the plain view.
    """
    y = material.data.rows["test"].y
    rows = chosen(y, seed)
    before = np.asarray(material.features["test"])[rows]
    after = _features(run, material, rows)
    names = [material.data.classes[c] for c in y[rows]]
    points = {
        "class": names,
        "before": tsne_embedding(before, seed).tolist(),
        "after": tsne_embedding(after, seed).tolist(),
    }
    numbers = asdict(measure_geometry(after, before, y[rows]))
    untouched = {f"untouched_{k}": v for k, v in asdict(measure_geometry(before, before, y[rows])).items()}
    return numbers | untouched | {"points": points}


def _features(run: Trainer, material: RunInputs, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    backbone = run.models[0].backbone
    assert backbone is not None
    backbone.eval()
    device = next(backbone.parameters()).device
    prepared, out = material.model_inputs["test"], []
    with torch.inference_mode():
        for block in torch.split(torch.as_tensor(np.asarray(rows)), 64):
            f = encode(backbone, prepared.eval_view(block), material.compute.inference.precision, device)
            out.append(f.float().cpu().numpy())
    return np.concatenate(out)
