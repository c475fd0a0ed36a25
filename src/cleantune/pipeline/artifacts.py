"""Files of a finished run besides its summary: labels, losses, mixtures, gallery and predictions."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from torch import Tensor

from cleantune.data import Data, UnreadableImage
from cleantune.label_quality.scores import cross_entropy_per_sample
from cleantune.pipeline.finished_run import FinishedRun
from cleantune.pipeline.label_table import LABELED_SPLITS, Verdict, judge_labels, label_table, mixtures_of, witness
from cleantune.storage.files import write_json, write_table
from cleantune.storage.run_dir import RunDir
from cleantune.utils.arrays import object_array

GALLERY = 60
"""Number of samples that the gallery shows."""
THUMBNAIL = 96
"""Longer side of a thumbnail in pixels."""


def predict_splits(finished: FinishedRun) -> dict[str, Tensor]:
    """Return the probabilities [N, C] of the selected model by split."""
    return {split: finished.trainer.probabilities(split) for split in finished.trainer.splits}


def score_labels(finished: FinishedRun, looks: dict[str, Tensor]) -> Verdict:
    """What is thought of the labels of train and validation."""
    run, first = finished.trainer, finished.selected_model.is_first_probe
    return judge_labels(
        [
            witness(probe.first if first else probe.last, looks[split], run.splits[split].y)
            for split, probe in run.probes.items()
        ],
        run.classes,
    )


def write_labels(run_dir: RunDir, data: Data, said: Verdict) -> Any:
    """labels.parquet and labels.csv, and the frame."""
    frame = label_table(data, said)
    write_table(run_dir.path / RunDir.LABELS, lambda path: frame.to_parquet(path, index=False))
    write_table(run_dir.path / RunDir.LABELS_CSV, lambda path: frame.to_csv(path, index=False))
    return frame


def write_artifacts(run_dir: RunDir, finished: FinishedRun, looks: dict[str, Tensor], frame: Any) -> None:
    """Write the data of the report's figures: losses, mixtures, gallery, unreadable samples."""
    import pandas as pd

    data, run, parts = finished.inputs.data, finished.trainer, []
    mixtures: dict[str, Any] = {}
    values = object_array(data.class_values)
    for split, probe in run.probes.items():
        y = run.splits[split].y
        last = cross_entropy_per_sample(looks[split], y)
        first = last if probe.first is None else probe.first.late_loss
        part = pd.DataFrame({
            "id": data.rows[split].ids, "split": split, "given_label": values[y.numpy()],
            "loss_first": first.double().numpy(), "loss_last": last.double().numpy(),
        })  # fmt: skip
        if split in data.truth:
            part["true_label"] = np.where(data.truth[split] >= 0, values[data.truth[split]], None)  # type: ignore[assignment]
        parts.append(part)
        if split == "train":
            mixtures = {
                name: mixtures_of(loss, y, run.classes, data.classes)
                for name, loss in (("first", first), ("last", last))
            }
    losses = pd.concat(parts, ignore_index=True)
    write_table(run_dir.path / RunDir.LOSSES, lambda path: losses.to_parquet(path, index=False))
    write_json(run_dir.path / RunDir.MIXTURES, mixtures)
    write_json(run_dir.path / RunDir.GALLERY, gallery(data, frame))
    if finished.inputs.unreadable:
        bad = pd.DataFrame(
            [(s.id, s.split, s.place) for s in finished.inputs.unreadable], columns=["id", "split", "place"]
        )
        bad["reason"] = bad["place"].str.split(": ", n=1).str[-1]
        write_table(run_dir.path / RunDir.UNREADABLE, lambda path: bad.to_csv(path, index=False))


def gallery(data: Data, frame: Any) -> list[dict[str, Any]]:
    """Return the first label issues with the text or a thumbnail of the sample."""
    place = {s: {i: k for k, i in enumerate(data.rows[s].ids.tolist())} for s in LABELED_SPLITS if s in data.rows}
    out = []
    for row in frame[frame["is_label_issue"]].head(GALLERY).to_dict("records"):
        samples = data.rows[row["split"]].samples
        k = place[row["split"]][row["id"]]
        shown = samples.read([k])[0] if data.kind != "features" else None
        row |= {"kind": data.kind, "thumbnail": None, "text": shown if isinstance(shown, str) else None}
        if data.kind == "image" and not isinstance(shown, UnreadableImage):
            row["thumbnail"] = thumbnail(shown)
        out.append(row)
    return out


def thumbnail(image: Any) -> str:
    """Return a small JPEG of an image as a data URI."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def write_unlabeled(run_dir: RunDir, data: Data, p: Tensor) -> None:
    """Write the predictions for the rows without a label."""
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
    write_table(run_dir.path / RunDir.UNLABELED, lambda path: frame.to_parquet(path, index=False))
