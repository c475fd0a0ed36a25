"""Files of a finished run next to its summary: label scores, gallery, unreadable samples, unlabeled predictions."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cleantune.data import Data, UnreadableImage
from cleantune.label_quality.noise_model import FLIP_CONCENTRATION
from cleantune.label_quality.scores import LabelScores, score_labels, score_probabilities
from cleantune.label_quality.separability import class_separability
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.label_table import LABELED_SPLITS
from cleantune.storage.files import write_json, write_table
from cleantune.storage.run_dir import RunDir
from cleantune.utils.arrays import object_array

GALLERY_SIZE = 60
"""Suspects that the report shows."""
THUMBNAIL_PIXELS = 96
"""Longer side of a thumbnail."""


def predict_splits(finished: FinishedRun) -> dict[str, Tensor]:
    """Return the probabilities [N, C] of the selected model by split, train excepted."""
    return {split: finished.trainer.probabilities(split) for split in finished.trainer.splits if split != "train"}


def score_run(finished: FinishedRun) -> LabelScores:
    """Score the labels of train and validation, in this order.

    The scores are those of the method's last selection, where it selected by them; the current features then show
    whether label errors are identifiable. Otherwise frozen pre-trained features are used: a model that was trained on
    the labels has memorized wrong ones. Validation labels are scored out of sample.
    """
    run, features = finished.trainer, finished.inputs.features
    splits = [split for split in LABELED_SPLITS if split in run.splits]
    y = [run.splits[split].y for split in splits]
    if not run.label_probabilities or finished.selected_model.is_first_probe:
        held_out = (features[splits[1]], y[1]) if len(splits) > 1 else None
        return score_labels(features["train"], y[0], run.classes, held_out=held_out)
    return score_probabilities(
        torch.cat([run.label_probabilities[split] for split in splits]),
        torch.cat(y),
        "probe",
        flip_concentration=getattr(finished.config.method, "flip_concentration_threshold", FLIP_CONCENTRATION),
        num_fitted=len(y[0]),
        reason=class_separability(run.splits["train"].features.plain, y[0], run.classes).reason,
    )


def selected_rows(finished: FinishedRun) -> np.ndarray:
    """Return for train and validation, in this order, whether the last selection trained on the label."""
    run = finished.trainer
    selected = torch.ones(len(run.y), dtype=torch.bool) if run.last_selected is None else run.last_selected
    num_validation = len(run.splits["validation"].y) if "validation" in run.splits else 0
    return np.concatenate([selected.numpy(), np.zeros(num_validation, dtype=bool)])


def write_artifacts(folder: Path, finished: FinishedRun, frame: Any) -> None:
    """Write what the report shows next to the tables: gallery and unreadable samples.

    Args:
        folder: Folder of the run.
        finished: The run.
        frame: Table of labels, worst first.
    """
    import pandas as pd

    write_gallery(folder, finished.inputs.data, frame[frame["is_label_issue"]])
    if finished.inputs.unreadable:
        rows = [(s.id, s.split, s.place) for s in finished.inputs.unreadable]
        bad = pd.DataFrame(rows, columns=["id", "split", "place"])
        bad["reason"] = bad["place"].str.split(": ", n=1).str[-1]
        write_table(folder / RunDir.UNREADABLE, lambda path: bad.to_csv(path, index=False))


def write_gallery(folder: Path, data: Data, frame: Any) -> None:
    """Write the first rows of a table of labels with thumbnail or text to artifacts/gallery.json."""
    place = {s: {i: k for k, i in enumerate(data.rows[s].ids.tolist())} for s in LABELED_SPLITS if s in data.rows}
    out = []
    for row in frame.head(GALLERY_SIZE).to_dict("records"):
        samples = data.rows[row["split"]].samples
        k = place[row["split"]][row["id"]]
        sample = samples.read([k])[0] if data.kind != "features" else None
        row |= {"kind": data.kind, "thumbnail": None, "text": sample if isinstance(sample, str) else None}
        if data.kind == "image" and not isinstance(sample, UnreadableImage):
            row["thumbnail"] = thumbnail(sample)
        out.append(row)
    write_json(folder / RunDir.GALLERY, out)


def thumbnail(image: Any) -> str:
    """Return a small JPEG of an image as a data URI."""
    image = image.copy()
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def write_unlabeled(folder: Path, data: Data, p: Tensor) -> None:
    """Write the predictions of the rows without a label.

    Args:
        folder: Folder of the run.
        data: Data of the run.
        p: Class probabilities of the unlabeled split [N, C].
    """
    import pandas as pd

    values = object_array(data.class_values)
    best = p.max(1)
    frame = pd.DataFrame(
        {
            "id": data.rows["unlabeled"].ids,
            "predicted_label": values[best.indices.numpy()],
            "probability": best.values.double().numpy(),
        }
    )
    if "unlabeled" in data.truth:
        truth = data.truth["unlabeled"]
        frame["true_label"] = np.where(truth >= 0, values[truth], None)  # type: ignore[assignment]
    write_table(folder / RunDir.UNLABELED, lambda path: frame.to_parquet(path, index=False))
