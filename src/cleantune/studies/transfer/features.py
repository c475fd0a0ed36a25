"""Extract the features of a task by a frozen backbone."""

from __future__ import annotations

from typing import Any

import numpy as np

from cleantune.backbones import Backbone as OpenedBackbone
from cleantune.config.run import ModelConfig
from cleantune.data import Rows
from cleantune.data.model_inputs import make_model_inputs
from cleantune.errors import UserError
from cleantune.features.cache import features_key
from cleantune.features.extract import extract
from cleantune.pipeline.compute import select_inference
from cleantune.pipeline.resolve import open_model
from cleantune.storage.files import cache_folder
from cleantune.studies.transfer.datasets import TaskData
from cleantune.studies.transfer.study import Backbone
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device


class BackboneFeatures:
    """Features of rows by one backbone, from the cache if they are there."""

    def __init__(self, model: Backbone, cache: str | None, console: Console) -> None:
        """Open the backbone.

        Raises:
            UserError: It is missing; the message names it.
        """
        self.model = model
        self.cache = cache_folder(cache)
        self.console = console
        is_given = model.model == "none"
        self.config = ModelConfig(model=None if is_given else model.model, image_size=model.image_size or None)
        try:
            self.backbone: OpenedBackbone | None = open_model(self.config, features_only=is_given)
        except UserError as error:
            place = f'the model "{model.name}"; --model "{model.name}=FOLDER" names another place'
            raise UserError(f"{error} ({place})") from None

    @property
    def kind(self) -> str:
        """Kind of samples that the backbone reads."""
        return "features" if self.backbone is None else self.backbone.architecture.kind

    @property
    def architecture(self) -> str:
        """Type of the backbone, on which presets depend."""
        return "" if self.backbone is None else self.backbone.architecture.model_type

    def extract(self, rows: Rows, title: str) -> Any:
        """Return features [N, D] of rows, memory-mapped if they come from the cache.

        Raises:
            UserError: The rows are of another kind, or one cannot be read.
        """
        if rows.samples.kind != self.kind:
            raise UserError(
                f"{title} has {rows.samples.kind} samples, but the model {self.model.name} reads {self.kind}"
            )
        if self.backbone is None:
            return np.asarray(rows.samples.read(range(len(rows))), np.float32)
        assert self.backbone.preprocess is not None
        with self.console.progress(f"reading {title}") as progress:
            samples = make_model_inputs(rows.samples, self.backbone.preprocess, self.cache, progress)
        self.backbone.to(pick_device("auto"))
        backend = select_inference(self.backbone, samples, self.config, len(rows))
        key = features_key(self.backbone, rows.samples.fingerprint, backend)
        with self.console.progress(f"features of {title}") as progress:
            features = extract(self.backbone, samples, backend, self.cache, key, progress)
        if features.unreadable:
            first = next(iter(features.unreadable.values()))
            number = f"{len(features.unreadable)} of {len(rows)}"
            raise UserError(f"{number} samples of {title} cannot be read, the first is {first}")
        return features


class TaskFeatures:
    """Features of all rows of a task by one backbone."""

    def __init__(self, extractor: BackboneFeatures, task: TaskData, name: str) -> None:
        """Extract the features of training and evaluation rows."""
        self.train = extractor.extract(task.train, name)
        self.eval = [extractor.extract(rows.data.rows, rows.data.name) for rows in task.eval_sets]
