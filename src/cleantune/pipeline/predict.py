"""A finished run's model: predictions of files, texts and arrays, and the features of its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from cleantune.config.run import read_config
from cleantune.data import Rows, load_unlabeled
from cleantune.data.model_inputs import make_model_inputs, sort_by_length, to_device
from cleantune.errors import UserError
from cleantune.features.cache import SHARD_ROWS, extract, features_key
from cleantune.features.precision import probe_precision
from cleantune.methods.protocol import Inputs
from cleantune.pipeline.export import load_models
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.precision import stored_precisions
from cleantune.pipeline.resolve import configure_table, resolve
from cleantune.storage.files import cache_folder
from cleantune.storage.run_dir import RunDir
from cleantune.training.models import Net
from cleantune.utils.arrays import object_array
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

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
    nets, note = load_models(folder / "model" if run else folder)
    return Model(nets, note["classes"], note["class_values"], run, pick_device(device))


class Model:
    """Predicts labels; opened with `cleantune.load`."""

    def __init__(
        self, nets: Sequence[Net], classes: Sequence[str], class_values: Sequence[Any], run: Path | None, device: str
    ) -> None:
        """Nets with the names of their classes.

        Args:
            nets: Of backbone and head, or a head alone where the run's data were features; of several the mean of
                their probabilities is taken.
            classes: Names of the classes, in the order of the scores.
            class_values: The labels as the data hold them.
            run: The run's folder, for the features of its data.
            device: Where it computes.
        """
        self.nets = [net.to(device).eval() for net in nets]
        self.classes = tuple(classes)
        self.class_values = object_array(class_values)
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
        backbone = self.nets[0].backbone
        kind: Any = "features" if backbone is None else backbone.architecture.kind
        return load_unlabeled(data, kind=kind, **columns)

    def probabilities(self, rows: Rows, *, cached: bool = False) -> Float[np.ndarray, "N C"]:
        """`predict_proba` of rows.

        Args:
            rows: Of the kind that the model reads.
            cached: Take features from the cache and keep them there: for models that share a backbone which was not
                trained.
        """
        backbone = self.nets[0].backbone
        if backbone is None:
            f = torch.as_tensor(np.asarray(rows.samples.read(range(len(rows))), np.float32))
            width = self.nets[0].head.settings()["width"]  # type: ignore[operator]
            if f.shape[1] != width:
                raise UserError(f"the features have {f.shape[1]} numbers a sample, the model takes {width}")
            return self._softmax([f])
        cache = cache_folder(None)
        assert backbone.preprocess is not None
        prepared = make_model_inputs(rows.samples, backbone.preprocess, cache)
        if prepared.unreadable:
            place = next(iter(prepared.unreadable.values()))
            raise UserError(
                f"{len(prepared.unreadable)} of {len(rows)} samples cannot be read, the first is {place};"
                " repair or remove them"
            )
        first = prepared.eval_view(torch.arange(min(BATCH, len(rows))))
        for net in self.nets:
            net.eval_precision = probe_precision(backbone, first, memory=cache / "precision")
        if cached:
            key = features_key(backbone, rows.samples.fingerprint, self.nets[0].eval_precision)
            kept = extract(backbone, prepared, self.nets[0].eval_precision, cache, key)
            blocks = (torch.from_numpy(kept[start : start + SHARD_ROWS]) for start in range(0, len(kept), SHARD_ROWS))
            return self._softmax(blocks, heads=True)
        order = torch.tensor(sort_by_length(prepared, range(len(rows))))
        batches = torch.split(order, BATCH)
        found = self._softmax(prepared.eval_view(batch) for batch in batches)
        out = np.empty_like(found)
        out[order.numpy()] = found
        return out

    def _softmax(self, batches: Iterable[Inputs], heads: bool = False) -> Float[np.ndarray, "N C"]:
        device = torch.device(self.device)
        with torch.no_grad():
            out = [self._mean(to_device(x, device), heads).cpu() for x in batches]
        return torch.cat(out).numpy()

    def _mean(self, x: Inputs, heads: bool) -> Float[torch.Tensor, "B C"]:
        parts = [net.head if heads else net for net in self.nets]
        return torch.stack([part(x).logits.softmax(1) for part in parts]).mean(0)

    def features(self, ids: Iterable[Any] | None = None) -> Float[np.ndarray, "N D"]:
        """The frozen backbone's features of the run's data, before any fine-tuning.

        Args:
            ids: Of rows of train and validation (then of unlabeled and test), in the order wanted; None gives
                train and validation as they stand.

        Raises:
            UserError: The model was opened without its run, or an id is unknown.
        """
        if self.run is None:
            raise UserError("features are of a run's data: open the run's folder, not its model folder")
        console, stored = Console(quiet=True), stored_precisions(RunDir(self.run, resume=True))
        run = resolve(configure_table(read_config(self.run / RunDir.CONFIG)), console)
        inputs = prepare_inputs(run.config, run.data, run.backbone, console, precisions=stored)
        place: dict[Any, tuple[str, int]] = {}
        for split in ("test", "unlabeled", "validation", "train"):
            if split in inputs.data.rows:
                place |= {i: (split, k) for k, i in enumerate(inputs.data.rows[split].ids.tolist())}
        wanted = (
            list(ids) if ids is not None else [i for i, (split, _) in place.items() if split in ("train", "validation")]
        )
        unknown = next((i for i in wanted if i not in place), None)
        if unknown is not None:
            raise UserError(f"the run has no row with the id {unknown!r}")
        return np.stack([np.asarray(inputs.features[place[i][0]][place[i][1]]) for i in wanted])
