"""A finished run's model: predictions of files, texts and arrays, and the features of its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from cleantune.config import configure, read_toml
from cleantune.console import Console
from cleantune.data import Bad, Rows, load_unlabelled
from cleantune.errors import UserError
from cleantune.export import load_model
from cleantune.inputs import by_length
from cleantune.learner import Net
from cleantune.material import cache_folder, gather, open_model, pick_device, read_data
from cleantune.precision import Precision, probe_precision
from cleantune.store import read_json

BATCH = 64
"""Samples of a forward."""


def load(path: str | Path, *, device: str = "auto") -> Model:
    """The model of a run, or of a model folder.

    Raises:
        UserError: There is none.
    """
    folder = Path(path)
    run = folder if (folder / "model").is_dir() else None
    if not folder.is_dir():
        raise UserError(f"no run {folder}: name the folder that --out was")
    net, note = load_model(folder / "model" if run else folder)
    return Model(net, note["classes"], note["class_values"], run, pick_device(device))


class Model:
    """Predicts labels; opened with `cleantune.load`."""

    def __init__(self, net: Net, classes: Sequence[str], class_values: Sequence[Any], run: Path | None, device: str) -> None:
        """A net with the names of its classes.

        Args:
            net: Of backbone and head, or a head alone where the run's data were features.
            classes: Names of the classes, in the order of the scores.
            class_values: The labels as the data hold them.
            run: The run's folder, for the features of its data.
            device: Where it computes.
        """
        self.net = net.to(device).eval()
        self.classes = tuple(classes)
        self.class_values = np.array([*class_values, None], dtype=object)[:-1]
        self.run = run
        self.device = device

    def predict(self, data: Any, **columns: Any) -> Shaped[np.ndarray, " N"]:
        """The most probable label of each sample, as the training data write labels.

        Args:
            data: Anything that `fit` takes, labels not needed; also a list of texts, of image paths or of Pillow
                images, an array of features, or one image file.
            **columns: `text`, `image` or `id`, by name.
        """
        labels = self.class_values[self.predict_proba(data, **columns).argmax(1)]
        return np.array(labels.tolist())

    def predict_proba(self, data: Any, **columns: Any) -> Float[np.ndarray, "N C"]:
        """Probability of every class for each sample, in the order of `classes`; rows sum to 1.

        Raises:
            UserError: The data do not fit the model, or a sample cannot be read; the sentence names it.
        """
        return self.probabilities(self.rows(data, **columns))

    def rows(self, data: Any, **columns: Any) -> Rows:
        """The data as rows with ids."""
        backbone = self.net.backbone
        kind: Any = "features" if backbone is None else backbone.architecture.kind
        return load_unlabelled(data, kind=kind, **columns)

    def probabilities(self, rows: Rows) -> Float[np.ndarray, "N C"]:
        """`predict_proba` of rows."""
        out = np.zeros((len(rows), len(self.classes)), np.float32)
        precision = None
        for indices in _batches(len(rows)):
            x = self._inputs(rows, indices)
            if precision is None and self.net.backbone is not None:
                precision = self.net.precision = probe_precision(
                    self.net.backbone, x, memory=cache_folder(None) / "precision"
                )
            with torch.no_grad():
                out[indices] = self.net(x).logits.softmax(1).cpu().numpy()
        return out

    def _inputs(self, rows: Rows, indices: list[int]) -> Any:
        """What the net takes of these rows."""
        read = rows.samples.read(indices)
        backbone = self.net.backbone
        if backbone is None:
            f = torch.as_tensor(np.asarray(read, np.float32))
            width = self.net.head.settings()["width"]  # type: ignore[operator]
            if f.shape[1] != width:
                raise UserError(f"the features have {f.shape[1]} numbers a sample, the model takes {width}")
            return f.to(self.device)
        for i, sample in zip(indices, read, strict=True):
            if isinstance(sample, Bad):
                raise UserError(f"{rows.samples.describe(i)} cannot be read ({sample.reason}); repair or remove it")
        return _to(backbone.preprocess.batch(read), self.device)  # type: ignore[union-attr]

    def features(self, ids: Iterable[Any] | None = None) -> Float[np.ndarray, "N D"]:
        """The frozen backbone's features of the run's data, before any fine-tuning.

        Args:
            ids: Of rows of train and validation (then of unlabelled and test), in the order wanted; None gives
                train and validation as they stand.

        Raises:
            UserError: The model was opened without its run, or an id is unknown.
        """
        if self.run is None:
            raise UserError("features are of a run's data: open the run's folder, not its model folder")
        table = read_toml(self.run / "config.toml")
        config, silent = configure(table), Console(silent=True)
        data, _ = read_data(config, silent)
        backbone = open_model(config.model, data.kind == "features")
        known = Precision(**read_json(self.run / "checkpoint" / "precision.json"))
        material = gather(config, data, backbone, silent, known)
        place: dict[Any, tuple[str, int]] = {}
        for split in ("test", "unlabelled", "validation", "train"):
            if split in material.data.rows:
                place |= {i: (split, k) for k, i in enumerate(material.data.rows[split].ids.tolist())}
        wanted = list(ids) if ids is not None else [i for i, (split, _) in place.items() if split in ("train", "validation")]
        unknown = next((i for i in wanted if i not in place), None)
        if unknown is not None:
            raise UserError(f"the run has no row with the id {unknown!r}")
        return np.stack([np.asarray(material.features[place[i][0]][place[i][1]]) for i in wanted])


def _batches(count: int) -> list[list[int]]:
    return [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]


def _to(x: Any, device: str) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) else {name: value.to(device) for name, value in x.items()}
