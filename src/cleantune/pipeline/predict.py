"""The model of a finished run: predictions for files, texts and arrays, and the features of its data."""

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
from cleantune.features.backend import InferenceBackend
from cleantune.features.cache import features_key
from cleantune.features.extract import extract
from cleantune.features.precision import select_precision
from cleantune.features.shards import SHARD_ROWS
from cleantune.methods.protocol import Inputs
from cleantune.pipeline.compute import stored_compute
from cleantune.pipeline.export import load_models
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.resolve import configure_table, resolve
from cleantune.storage.files import cache_folder
from cleantune.storage.run_dir import RunDir
from cleantune.training.heads import head_width
from cleantune.training.models import Model as Member
from cleantune.utils.arrays import object_array
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

BATCH_SIZE = 64
"""Samples of a forward pass."""


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Load the model of a run, or of a model folder.

    Args:
        path: Folder of a run, or its folder `model/`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: There is no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no run {folder}: name the folder that --out was")
    run = folder if (folder / RunDir.MODEL).is_dir() else None
    models, note = load_models(folder / RunDir.MODEL if run else folder)
    return Model(models, note["classes"], note["class_values"], run, pick_device(device))


class Model:
    """A classifier of a finished run; `cleantune.load` opens it."""

    def __init__(
        self,
        members: Sequence[Member],
        classes: Sequence[str],
        class_values: Sequence[Any],
        run: Path | None,
        device: str,
    ) -> None:
        """Create a classifier.

        Args:
            members: Models of backbone and head, or a head alone where the run's data were features. The probabilities
                of several are averaged.
            classes: Names of the classes, in the order of the scores.
            class_values: Labels as the data write them.
            run: Folder of the run, for the features of its data.
            device: Device that the models compute on.
        """
        self.members = [member.to(device).eval() for member in members]
        self.classes = tuple(classes)
        self.class_values = object_array(class_values)
        self.run = run
        self.device = device

    def predict(self, data: Any, **columns: Any) -> Shaped[np.ndarray, " N"]:
        """Predict the label of each sample, as the training data write labels.

        Args:
            data: Anything that `fit` takes, without labels; also a list of texts, of image paths or of Pillow images,
                an array of features, or one image file.
            **columns: `text`, `image` or `id`, by name.

        Raises:
            UserError: As in `predict_proba`.
        """
        labels = self.class_values[self.predict_proba(data, **columns).argmax(1)]
        return np.array(labels.tolist())

    def predict_proba(self, data: Any, **columns: Any) -> Float[np.ndarray, "N C"]:
        """Predict the probability of every class for each sample, in the order of `classes`.

        Args:
            data: As in `predict`.
            **columns: As in `predict`.

        Raises:
            UserError: The data do not fit the model, or a sample cannot be read; the sentence names it.
        """
        return self.probabilities(self.read(data, **columns))

    def read(self, data: Any, **columns: Any) -> Rows:
        """Read data as rows with ids; arguments as in `predict`."""
        backbone = self.members[0].backbone
        kind: Any = "features" if backbone is None else backbone.architecture.kind
        return load_unlabeled(data, kind=kind, **columns)

    def probabilities(self, rows: Rows, *, cached: bool = False) -> Float[np.ndarray, "N C"]:
        """Predict the probability of every class for rows.

        Args:
            rows: Rows of the kind that the model takes.
            cached: Keep the features in the cache, for models that share a backbone which was not fine-tuned.

        Raises:
            UserError: As in `predict_proba`.
        """
        backbone = self.members[0].backbone
        if backbone is None:
            return self._softmax([self._read_features(rows)])
        cache = cache_folder(None)
        assert backbone.preprocess is not None
        inputs = make_model_inputs(rows.samples, backbone.preprocess, cache)
        if inputs.unreadable:
            raise UserError(
                f"{len(inputs.unreadable)} of {len(rows)} samples cannot be read, the first is"
                f" {next(iter(inputs.unreadable.values()))}; repair or remove them"
            )
        backend = InferenceBackend("torch", select_precision(backbone))
        for member in self.members:
            member.inference = backend
        if cached:
            key = features_key(backbone, rows.samples.fingerprint, backend)
            features = extract(backbone, inputs, backend, cache, key)
            starts = range(0, len(features), SHARD_ROWS)
            blocks = (torch.from_numpy(features[start : start + SHARD_ROWS]) for start in starts)
            return self._softmax(blocks, heads_only=True)
        order = torch.tensor(sort_by_length(inputs, range(len(rows))))
        sorted_p = self._softmax(inputs.eval_view(batch) for batch in torch.split(order, BATCH_SIZE))
        p = np.empty_like(sorted_p)
        p[order.numpy()] = sorted_p
        return p

    def _read_features(self, rows: Rows) -> Float[torch.Tensor, "N D"]:
        f = torch.as_tensor(np.asarray(rows.samples.read(range(len(rows))), np.float32))
        width = head_width(self.members[0].head)
        if f.shape[1] != width:
            raise UserError(f"the features have {f.shape[1]} dimensions, the model takes {width}")
        return f

    def _softmax(self, batches: Iterable[Inputs], heads_only: bool = False) -> Float[np.ndarray, "N C"]:
        device = torch.device(self.device)
        modules = [member.head if heads_only else member for member in self.members]
        means = []
        with torch.no_grad():
            for batch in batches:
                x = to_device(batch, device)
                means.append(torch.stack([module(x).logits.softmax(1) for module in modules]).mean(0).cpu())
        return torch.cat(means).numpy()

    def features(self, ids: Iterable[Any] | None = None) -> Float[np.ndarray, "N D"]:
        """Return the pre-trained backbone's features of the run's data, before any fine-tuning.

        Args:
            ids: Ids of rows, in the order of the result; None: all rows of train and validation. An id that occurs in
                several splits is taken from train, validation, unlabeled, test, in this order.

        Raises:
            UserError: The model was loaded without its run, or an id is unknown.
        """
        if self.run is None:
            raise UserError("features are those of a run's data: open the run's folder, not its model folder")
        console, compute = Console(quiet=True), stored_compute(RunDir(self.run, resume=True))
        run = resolve(configure_table(read_config(self.run / RunDir.CONFIG)), console)
        inputs = prepare_inputs(run.config, run.data, run.backbone, console, compute=compute)
        place: dict[Any, tuple[str, int]] = {}
        for split in ("test", "unlabeled", "validation", "train"):
            if split in inputs.data.rows:
                place |= {i: (split, k) for k, i in enumerate(inputs.data.rows[split].ids.tolist())}
        labeled = [i for i, (split, _) in place.items() if split in ("train", "validation")]
        ids = labeled if ids is None else list(ids)
        unknown = next((i for i in ids if i not in place), None)
        if unknown is not None:
            raise UserError(f"the run has no row with the id {unknown!r}")
        return np.stack([np.asarray(inputs.features[place[i][0]][place[i][1]]) for i in ids])
