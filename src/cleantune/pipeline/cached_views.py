"""Cached augmented views of the training samples, for methods that mix views in scope `head`."""

from __future__ import annotations

from typing import get_args

import numpy as np
import psutil

from cleantune.config.run import Config
from cleantune.errors import UserError
from cleantune.features.cache import CachedViews, ViewSpec, extract, features_key, view_key
from cleantune.methods.protocol import Phase, View
from cleantune.pipeline.inputs import RunInputs
from cleantune.storage.files import cache_folder
from cleantune.training.batches import FeatureBatches
from cleantune.utils.console import Console


def views_to_cache(todo: tuple[Phase, ...], count: int) -> list[ViewSpec]:
    """The augmented views that the phases of a method draw from a cache, weak ones first.

    Args:
        todo: Phases; those of scope `all` make views as they go.
        count: Views of each kind; 1 is the control without augmentation, in which the plain view serves.
    """
    if count == 1:
        return []
    kinds = {view for phase in todo if phase.scope == "head" for view in phase.views}
    return [ViewSpec(kind, k) for kind in get_args(View) if kind in kinds for k in range(count)]


def cached_views(
    material: RunInputs, todo: tuple[Phase, ...], config: Config, console: Console
) -> FeatureBatches | None:
    """Features of the training split in the plain and all wanted views, or None where the plain ones do.

    What it will take is said before; what the cache holds is taken from there, and an extraction that was cut off goes
    on where it stopped.

    Raises:
        UserError: The views do not fit on the disk that holds the cache.
    """
    views = views_to_cache(todo, config.run.cached_augmentations)
    if not views:
        return None
    if material.backbone is None:
        console.print("features without a backbone have one view: it serves as every view")
        return None
    rows, prepared = material.data.rows["train"], material.prepared["train"]
    size = 4 * len(rows) * material.backbone.width * (1 + len(views))
    cache = cache_folder(config.run.cache)
    cache.mkdir(parents=True, exist_ok=True)
    free, disk = psutil.virtual_memory().available, psutil.disk_usage(str(cache)).free
    console.print(
        f"{len(views)} augmented views of {len(rows):,} training samples: {size / 2**20:,.0f} MiB with the plain one"
        f" ({free / 2**20:,.0f} MiB of memory are free)"
    )
    if size > disk:
        raise UserError(
            f"--cached-augmentations {config.run.cached_augmentations}: the cached views take {size / 2**30:.1f} GiB, but {cache} has"
            f" {disk / 2**30:.1f} GiB left; take fewer views, or name another --cache"
        )
    augment = config.augmentation.image if material.data.kind == "image" else config.augmentation.text
    plain = features_key(material.backbone, rows.samples.fingerprint, material.precision, config.run.feature_dtype)
    made = []
    for seen in views:
        with console.progress(f"{seen.view} view {seen.number + 1}") as told:
            key = view_key(plain, seen, augment)
            made.append(
                extract(
                    material.backbone, prepared, material.precision, cache, key, told, seen,
                    ranks=material.ranks, feature_dtype=config.run.feature_dtype,
                )
            )  # fmt: skip
    strong = sum(seen.view == "strong" for seen in views)
    plain_features = np.asarray(material.features["train"], np.float32)
    return FeatureBatches(CachedViews([plain_features, *made]), strong if strong < len(views) else 0)
