"""Image folders: train/<class>/..., validation/<class>/..., test/<class>/..., or <class>/... alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from cleantune.data.images import IMAGE_EXTENSIONS
from cleantune.data.raw_table import RawTable
from cleantune.data.splits import canonical_split
from cleantune.errors import UserError


def read_image_folder(root: Path, notes: list[str], *, labeled: bool = True) -> dict[str, RawTable]:
    """One table a split with the columns `image` (path below the root) and, where labeled, `label` (folder's name).

    Without a folder named train, or where not labeled, everything below the root is one undivided table.

    Raises:
        UserError: Where no class folder holds an image.
    """
    if not labeled:
        return {"": _part(root, root, {None: root}, notes)}
    folders = _folders(root)
    splits = {split: folder for folder in folders if (split := canonical_split(folder.name))}
    if "train" not in splits:
        return {"": _part(root, root, {folder.name: folder for folder in folders}, notes)}
    for folder in folders:
        if folder not in splits.values():
            notes.append(f"left the folder {folder} out: it is named neither train, validation nor test")
    return {
        split: _part(root, folder, {child.name: child for child in _folders(folder)}, notes)
        for split, folder in splits.items()
    }


def _part(root: Path, top: Path, classes: Mapping[str, Path] | Mapping[None, Path], notes: list[str]) -> RawTable:
    paths: list[str] = []
    labels: list[str | None] = []
    skipped = 0
    for label, folder in classes.items():
        images, others = _images(folder)
        skipped += others
        if not images:
            notes.append(f"the folder {folder} holds no image")
        paths += [path.relative_to(root).as_posix() for path in images]
        labels += [label] * len(images)
    if not paths:
        raise UserError(
            f"{top} holds no folder of images; expected {top}/<class>/<image> or {top}/train/<class>/<image>"
        )
    if skipped:
        notes.append(f"skipped {skipped} files in {top} that are no images")
    table = pa.table({"image": pa.array(paths, pa.large_string()), "label": pa.array(labels, pa.string())})
    return RawTable(str(top), table if None not in classes else table.select(["image"]), root)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> tuple[list[Path], int]:
    images, others = [], 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith("."):  # noqa: PTH122
                images.append(Path(place, name))
            else:
                others += not name.startswith(".")
    return images, others
