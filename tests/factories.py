"""Small data sets for tests of whole runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

QUICK = {
    "method.probe.epochs": 3, "method.probe.min_steps": 0, "method.tune.epochs": 2, "method.tune_visits": 1.0,
}  # fmt: skip
"""Settings of the default method for a run of a few seconds."""
QUICK_PROBE = {"method.probe.epochs": 2, "method.probe.min_steps": 0}
"""Settings of a probe for a run of a second."""


def color_table(folder: Path, count: int = 90, *, unreadable: int = 0) -> Path:
    """Write a table of one-color images in three classes with noisy and true labels, and return its path.

    Args:
        folder: Folder of the table.
        count: Number of images.
        unreadable: Number of images, from the first on, that cannot be decoded.
    """
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        c = i % 3
        pixels = rng.integers(0, 90, (24, 24, 3))
        pixels[..., c] += 120
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = b"broken" if i < unreadable else file.getvalue()
        given = int(rng.integers(3)) if i % 5 == 0 else c
        rows.append(
            {"id": f"image-{i}", "image": {"bytes": data, "path": None}, "label": "rgb"[given], "true": "rgb"[c]}
        )
    path = folder / "colors.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def embeddings(count: int = 800, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, 16] in four clusters, and their classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 4
    return (rng.normal(size=(count, 16)) + 4 * np.eye(16)[y]).astype(np.float32), y
