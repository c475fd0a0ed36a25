"""Cached augmented views of the training samples, for methods that mix views in scope `head`."""

from __future__ import annotations

from typing import get_args

import numpy as np
import psutil

from cleantune.config.run import Config
from cleantune.errors import UserError
from cleantune.features.cache import CachedViews, features_key
from cleantune.features.extract import ViewSpec, extract
from cleantune.methods.protocol import Phase, View
from cleantune.pipeline.inputs import RunInputs
from cleantune.storage.files import cache_folder
from cleantune.training.batches import FeatureBatches
from cleantune.utils.console import Console


def views_to_cache(phases: tuple[Phase, ...], count: int) -> list[ViewSpec]:
    """Return the augmented views that the phases of a method read from a cache, weak ones first.

    Args:
        phases: Phases of a method; those of scope `all` augment as they go.
        count: Views of each kind; 1 is the control without augmentation, where the plain view serves as every view.
    """
    if count == 1:
        return []
    kinds = {view for phase in phases if phase.scope == "head" for view in phase.views}
    return [ViewSpec(kind, k) for kind in get_args(View) if kind in kinds for k in range(count)]


def cached_views(
    inputs: RunInputs, phases: tuple[Phase, ...], config: Config, console: Console
) -> FeatureBatches | None:
    """Extract the training split's features in the plain and all augmented views, or return None without augmentation.

    Cached features are read, and an interrupted extraction continues.

    Raises:
        UserError: The views do not fit on the disk that has the cache.
    """
    views = views_to_cache(phases, config.run.cached_augmentations)
    if not views:
        return None
    backbone = inputs.backbone
    if backbone is None:
        console.info("features without a backbone have one view: it serves as every view")
        return None
    rows, dtype, backend = inputs.data.rows["train"], config.run.feature_dtype, inputs.compute.inference
    cache = cache_folder(config.run.cache)
    cache.mkdir(parents=True, exist_ok=True)
    _check_space(4 * len(rows) * backbone.width * (1 + len(views)), len(views), len(rows), config, console)
    augmentation = config.augmentation.image if inputs.data.kind == "image" else config.augmentation.text
    plain_key = features_key(backbone, rows.samples.fingerprint, backend, dtype)
    views_features = []
    for view in views:
        with console.progress(f"{view.view} view {view.number + 1}") as report:
            key = view.key(plain_key, augmentation)
            views_features.append(
                extract(
                    backbone, inputs.model_inputs["train"], backend, cache, key, report, view,
                    group=inputs.group, feature_dtype=dtype,
                )
            )  # fmt: skip
    strong = sum(view.view == "strong" for view in views)
    plain = np.asarray(inputs.features["train"], np.float32)
    return FeatureBatches(CachedViews([plain, *views_features]), strong if strong < len(views) else 0)


def _check_space(size: int, num_views: int, num_samples: int, config: Config, console: Console) -> None:
    """Print the bytes that the views take, and refuse them where the disk is too small."""
    cache = cache_folder(config.run.cache)
    free, disk = psutil.virtual_memory().available, psutil.disk_usage(str(cache)).free
    console.info(
        f"{num_views} augmented views of {num_samples:,} training samples: {size / 2**20:,.0f} MiB with the plain one"
        f" ({free / 2**20:,.0f} MiB of memory are free)"
    )
    if size > disk:
        raise UserError(
            f"--cached-augmentations {config.run.cached_augmentations}: the cached views take {size / 2**30:.1f} GiB,"
            f" but {cache} has {disk / 2**30:.1f} GiB left; take fewer views, or name another --cache"
        )
