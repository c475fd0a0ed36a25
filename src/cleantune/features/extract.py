"""Features of a frozen backbone, computed once into the cache.

A shard is computed in batches of its own rows, so an extraction that was killed resumes to bitwise the same features.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cleantune.backbones import Backbone, ImagePreprocess
from cleantune.data.image_cache import Progress
from cleantune.data.model_inputs import ModelInputs, maybe_prefetch, raw_inputs, sort_by_length
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.errors import UserError
from cleantune.features.backend import InferenceBackend
from cleantune.features.cache import Features, find_features
from cleantune.features.encoder import Encoder
from cleantune.features.shards import FeatureDtype, ensure_shard, num_shards, shard_rows, write_index
from cleantune.methods.protocol import Inputs, View

BATCH_SIZE = 64
"""Samples of a forward pass; torch takes more where images are small (`batch_size_for`)."""
MAX_BATCH_SIZE = 256
"""Most images of a forward pass."""


@dataclass(frozen=True)
class ViewSpec:
    """A view of samples: evaluation preprocessing, or one of several augmentations."""

    view: View = "plain"
    number: int = 0
    """Number among the views of one kind; each has its own random augmentations."""

    def inputs(self, prepared: ModelInputs, rows: list[int], raw: bool = False) -> Inputs:
        """Return the inputs of these rows, with the same augmentation at every call.

        Args:
            prepared: Samples.
            rows: Rows of a batch.
            raw: Return plain images as uint8 pixels instead of normalized.
        """
        index = torch.tensor(rows)
        if self.view == "plain":
            return raw_inputs(prepared, index) if raw else prepared.eval_view(index)
        digest = sha256(f"{self.view} {self.number} {rows[0]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return (prepared.weak_view if self.view == "weak" else prepared.strong_view)(index, generator)

    def key(self, key: str, augmentation: object) -> str:
        """Return the name of the view's features in the cache.

        Args:
            key: Name of the features of the plain view (`features_key`).
            augmentation: Strength of the augmentations.
        """
        return sha256(f"{key} {self.view} {self.number} {augmentation!r}".encode()).hexdigest()[:32]


PLAIN_VIEW = ViewSpec()


def extract(
    backbone: Backbone,
    prepared: ModelInputs,
    backend: InferenceBackend,
    cache: Path,
    key: str,
    progress: Progress | None = None,
    view: ViewSpec = PLAIN_VIEW,
    group: ProcessGroup = SINGLE_PROCESS,
    feature_dtype: FeatureDtype = "float32",
) -> Features:
    """Return the feature of every sample, from the cache if it is complete there.

    Args:
        backbone: On its device; it is in evaluation mode meanwhile.
        prepared: Samples; unreadable ones get zeros and are listed in the index.
        backend: Program and precision.
        cache: Folder of the cache.
        key: Name of the features (`features_key`, or `ViewSpec.key` for an augmented view).
        progress: Called with the samples done and their total.
        view: View of the samples.
        group: Processes that divide the shards among them and see one cache.
        feature_dtype: Preferred number format; shards that float16 would change are kept in float32.

    Raises:
        UserError: A feature is not finite; the message names the sample.
    """
    features = find_features(cache, key)
    if all(group.all_gather_object(features is not None)):
        assert features is not None
        return features
    folder = cache / f"features-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    shape = len(prepared), backbone.width
    was_training = backbone.training
    encoder = Encoder(backbone.eval(), backend)

    def compute(rows: range) -> np.ndarray:
        return extract_shard(encoder, prepared, rows, view)

    def finish(k: int, pending: Future[None] | None) -> None:
        if pending is not None:
            pending.result()
        if progress is not None:
            progress(shard_rows(k, len(prepared)).stop, len(prepared))

    try:
        with ThreadPoolExecutor(1) as writer:
            previous: tuple[int, Future[None] | None] | None = None
            for k in range(num_shards(len(prepared)))[group.rank :: group.world_size]:
                pending = ensure_shard(folder, k, shape, compute, feature_dtype, writer)
                if previous is not None:
                    finish(*previous)
                previous = k, pending
            if previous is not None:
                finish(*previous)
    finally:
        backbone.train(was_training)
    unreadable = {row: reason for part in group.all_gather_object(prepared.unreadable) for row, reason in part.items()}
    group.on_main(lambda: write_index(folder, *shape, unreadable, feature_dtype))
    features = find_features(cache, key)
    assert features is not None, f"{folder} was written and cannot be read"
    return features


def extract_shard(
    encoder: Encoder, prepared: ModelInputs, rows: range, view: ViewSpec = PLAIN_VIEW
) -> Float[np.ndarray, "n D"]:
    """Return the features [n, D] of a range of rows; texts of similar length share a batch.

    Args:
        encoder: Backbone with its backend.
        prepared: Samples; unreadable ones get zeros.
        rows: Rows of the samples.
        view: View of the samples.

    Raises:
        UserError: A feature is not finite.
    """
    out = np.zeros((len(rows), encoder.backbone.width), np.float32)
    order = [i for i in sort_by_length(prepared, rows) if i not in prepared.unreadable]
    size = batch_size_for(encoder.backbone, encoder.backend)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    is_raw = encoder.backend.name == "openvino"
    items = ((batch, view.inputs(prepared, batch, is_raw)) for batch in batches)
    for batch, f in encoder.stream(maybe_prefetch(items, encoder.device.type == "cuda")):
        _refuse_non_finite(f.numpy(), batch, prepared)
        out[np.array(batch) - rows.start] = f.numpy()
    for i in prepared.unreadable:  # images that are decoded on demand are known to be unreadable only now
        if i in rows:
            out[i - rows.start] = 0
    return out


def batch_size_for(backbone: Backbone, backend: InferenceBackend) -> int:
    """Return the samples of a forward pass.

    For torch these are as many small images as have the pixels of `BATCH_SIZE` images of 224 px: a third of the time of
    64 small images is overhead of the layers. OpenVINO splits batches itself.
    """
    preprocess = backbone.preprocess
    if backend.name != "torch" or not isinstance(preprocess, ImagePreprocess):
        return BATCH_SIZE
    return max(BATCH_SIZE, min(MAX_BATCH_SIZE, BATCH_SIZE * 224 * 224 // int(np.prod(preprocess.size))))


def _refuse_non_finite(f: Float[np.ndarray, "B D"], batch: Sequence[int], prepared: ModelInputs) -> None:
    is_finite = np.isfinite(f).all(1)  # by NumPy: threads of torch would spin on the cores that the network computes on
    if not is_finite.all():
        place = prepared.describe(batch[int(is_finite.argmin())])
        raise UserError(
            f"the model gives a feature that is not finite for {place} ({int((~is_finite).sum())} of a batch of "
            f"{len(batch)}): try --precision float32, or another model"
        )
