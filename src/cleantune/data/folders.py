"""Image folders: train/<class>/..., validation/<class>/..., test/<class>/..., or only <class>/..."""

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
    """List a folder of images as one table per split.

    Args:
        root: Folder.
        notes: Receives messages for the user.
        labeled: Whether folders are classes and splits; if not, all images form one table.

    Returns:
        Tables with the columns `image` (path relative to the root) and, if labeled, `label` (name of the class folder);
        one table under the key `""` if there is no folder of the training split.

    Raises:
        UserError: No class folder contains an image.
    """
    if not labeled:
        return {"": _list_images(root, root, {None: root}, notes)}
    folders = _subfolders(root)
    splits = {split: folder for folder in folders if (split := canonical_split(folder.name))}
    if "train" not in splits:
        return {"": _list_images(root, root, {folder.name: folder for folder in folders}, notes)}
    for folder in folders:
        if folder not in splits.values():
            notes.append(f"left the folder {folder} out: it is named neither train, validation nor test")
    return {
        split: _list_images(root, folder, {child.name: child for child in _subfolders(folder)}, notes)
        for split, folder in splits.items()
    }


def _list_images(
    root: Path, parent: Path, classes: Mapping[str, Path] | Mapping[None, Path], notes: list[str]
) -> RawTable:
    paths: list[str] = []
    labels: list[str | None] = []
    num_skipped = 0
    for label, folder in classes.items():
        images, num_others = _find_images(folder)
        num_skipped += num_others
        if not images:
            notes.append(f"the folder {folder} contains no image")
        paths += [path.relative_to(root).as_posix() for path in images]
        labels += [label] * len(images)
    if not paths:
        raise UserError(
            f"{parent} contains no folder of images; expected {parent}/<class>/<image> or "
            f"{parent}/train/<class>/<image>"
        )
    if num_skipped:
        notes.append(f"skipped {num_skipped} files in {parent} that are no images")
    table = pa.table({"image": pa.array(paths, pa.large_string()), "label": pa.array(labels, pa.string())})
    return RawTable(str(parent), table if None not in classes else table.select(["image"]), root)


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _find_images(folder: Path) -> tuple[list[Path], int]:
    """Return the images below a folder and the number of other files; hidden files are ignored."""
    images, num_others = [], 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith("."):  # noqa: PTH122
                images.append(Path(parent, name))
            else:
                num_others += not name.startswith(".")
    return images, num_others
