"""Read the public downloads of the paper's data into tables that every verb of cleantune accepts.

CIFAR-100: the binary version (`cifar-100-binary`: train.bin, test.bin, fine_label_names.txt) from
https://www.cs.toronto.edu/~kriz/cifar.html, or `hf:uoft-cs/cifar100`. The Python version is pickled, and unpickling
can run code: it is refused.

Clothing1M (Xiao et al., CVPR 2015; by request from its authors): noisy_label_kv.txt, clean_label_kv.txt,
noisy_train_key_list.txt, clean_val_key_list.txt and clean_test_key_list.txt, in the folder or in `annotations/` below
it, and the images under the paths that the keys are (`images/0/00/….jpg`).

mini-WebVision (WebVision 1.0, https://data.vision.ee.ethz.ch/cvl/webvision/): info/train_filelist_google.txt and
info/val_filelist.txt, images of Google's part under the paths of the list and validation images in `val_images_256/`
(or `val_images/`, or as listed); of the 1,000 classes the first 50.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Int

from cleantune.errors import UserError
from cleantune.storage.files import write_table

RECORD = 2 + 3 * 32 * 32
"""Bytes of an image of CIFAR-100: coarse label, fine label, and planes of red, green and blue."""
CLOTHES = ("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
           "Shawl", "Dress", "Vest", "Underwear")  # fmt: skip
"""Clothing1M's classes in the order of their indices."""
NUM_MINI_CLASSES = 50
"""Classes of mini-WebVision."""


class ListedImage(NamedTuple):
    """A line of a list of images."""

    path: str
    label: int


def cifar100(root: Path, out: Path, subset: int) -> dict[str, Any]:
    """Write `train.parquet` and `test.parquet` with PNG images from the binary version of CIFAR-100.

    Raises:
        UserError: The files are missing, pickled or truncated, or contain a label without a name.
    """
    root = root / "cifar-100-binary" if (root / "cifar-100-binary").is_dir() else root
    if not (root / "train.bin").is_file() and any((root / p / "meta").is_file() for p in (".", "cifar-100-python")):
        raise UserError(
            f"{root} contains CIFAR-100 as Python pickles, which can run code when opened; take the binary version "
            "(cifar-100-binary.tar.gz, https://www.cs.toronto.edu/~kriz/cifar.html) or hf:uoft-cs/cifar100"
        )
    names = [line for _, line in _lines(root / "fine_label_names.txt", "CIFAR-100's binary version")]
    for split in ("train", "test"):
        _write_images(out / f"{split}.parquet", *_records(root / f"{split}.bin", len(names)), names)
    return {"data": str(out / "train.parquet"), "test": str(out / "test.parquet"), "image": "image", "label": "label"}


def _records(path: Path, classes: int) -> tuple[np.ndarray, Int[np.ndarray, " N"]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; it belongs to CIFAR-100's binary version")
    raw = np.fromfile(path, np.uint8)
    if not len(raw) or len(raw) % RECORD:
        raise UserError(f"{path} has {len(raw)} bytes, not a multiple of {RECORD} (one record); download it again")
    records = raw.reshape(-1, RECORD)
    fine = records[:, 1].astype(np.int64)
    if (fine >= classes).any():
        row = int((fine >= classes).argmax())
        raise UserError(
            f"{path}: record {row} (from 0) has the fine label {fine[row]}, but fine_label_names.txt names {classes} "
            "classes; download both again"
        )
    return records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), fine


def _write_images(path: Path, pixels: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    from PIL import Image

    def png(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()

    table = pa.table({"image": pa.array([png(x) for x in pixels], pa.large_binary()), "label": pa.array(labels)})
    # Hugging Face's ClassLabel metadata keep the classes in the order of their indices.
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    write_table(path, lambda draft: pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), draft))


def clothing1m(root: Path, out: Path, subset: int) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` with the paths of the images.

    Args:
        root: Folder of the download.
        out: Folder of the tables.
        subset: Training images of one fixed draw, balanced over the given classes if possible; 0 takes all.

    Raises:
        UserError: A list is missing or malformed; the message names its line.
    """
    lists = root / "annotations" if (root / "annotations" / "noisy_label_kv.txt").is_file() else root
    noisy, clean = (_labels(lists / f"{kind}_label_kv.txt") for kind in ("noisy", "clean"))
    train = _keyed(lists / "noisy_train_key_list.txt", noisy, lists / "noisy_label_kv.txt")
    validation = _keyed(lists / "clean_val_key_list.txt", clean, lists / "clean_label_kv.txt")
    test = _keyed(lists / "clean_test_key_list.txt", clean, lists / "clean_label_kv.txt")
    train = draw_balanced(train, subset)
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        _write_paths(out / f"{split}.parquet", root, rows, [CLOTHES[row.label] for row in rows])
    paths = {split: str(out / f"{split}.parquet") for split in ("validation", "test")}
    return {"data": str(out / "train.parquet"), "image": "image", "label": "label"} | paths


def _labels(path: Path) -> dict[str, int]:
    return {row.path: row.label for _, row in _listed(path, len(CLOTHES), "Clothing1M")}


def _keyed(path: Path, labels: Mapping[str, int], kv: Path) -> list[ListedImage]:
    rows = []
    for number, key in _lines(path, "Clothing1M"):
        if key not in labels:
            raise UserError(f"{path}: line {number} names {key}, which has no label in {kv}; download both again")
        rows.append(ListedImage(key, labels[key]))
    return rows


def draw_balanced(rows: list[ListedImage], count: int) -> list[ListedImage]:
    """Return a fixed draw, as balanced over the classes as possible, in the order of the list."""
    if not 0 < count < len(rows):
        return rows
    y = np.array([row.label for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    order = order[np.argsort(y[order], kind="stable")]
    sizes = np.bincount(y)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # 0, 1, 2, … inside each class
    chosen = order[np.argsort(rank, kind="stable")[:count]]
    return [rows[i] for i in np.sort(chosen)]


def webvision(root: Path, out: Path, subset: int) -> dict[str, Any]:
    """Write `train.parquet` and `test.parquet` with the paths of the images of the first 50 classes.

    Raises:
        UserError: A list is missing or malformed; the message names its line.
    """
    rows: dict[str, list[ListedImage]] = {}
    for split, name in (("train", "train_filelist_google.txt"), ("test", "val_filelist.txt")):
        listed = (row for _, row in _listed(root / "info" / name, 1000, "WebVision 1.0"))
        rows[split] = [row for row in listed if row.label < NUM_MINI_CLASSES]
        if not rows[split]:
            classes = f"the first {NUM_MINI_CLASSES} classes"
            raise UserError(f"{root / 'info' / name} lists no image of {classes}; download it again")
    folder = next((name for name in ("val_images_256", "val_images") if (root / name).is_dir()), "")
    for split, chosen in rows.items():
        place = root / folder if split == "test" else root
        _write_paths(out / f"{split}.parquet", place, chosen, [row.label for row in chosen])
    return {"data": str(out / "train.parquet"), "test": str(out / "test.parquet"), "image": "image", "label": "label"}


def _listed(path: Path, classes: int, source: str) -> Iterator[tuple[int, ListedImage]]:
    """Yield every `path label` of a list with its line number."""
    for number, line in _lines(path, source):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(f'{path}: line {number} is "{line}"; expected a path, a blank and a label')
        if int(label) >= classes:
            raise UserError(f"{path}: line {number} has the label {label}, outside 0 to {classes - 1}")
        yield number, ListedImage(name.strip(), int(label))


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list that are not empty, with their numbers from 1."""
    if not path.is_file():
        raise UserError(f"{path} is missing; it belongs to {source}")
    is_empty = True
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    is_empty = False
                    yield number, line.strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a text file ({error}); download it again") from error
    if is_empty:
        raise UserError(f"{path} is empty; download it again")


def _write_paths(path: Path, folder: Path, rows: list[ListedImage], labels: list[Any]) -> None:
    first = folder / rows[0].path
    if not first.is_file():
        raise UserError(f"{first}, the first image of a list, is missing; put the images below {folder}")
    root = folder.resolve()
    table = pa.table({"image": [str(root / row.path) for row in rows], "label": labels})
    write_table(path, lambda draft: pyarrow.parquet.write_table(table, draft))


LOADERS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "cifar100": cifar100,
    "clothing1m": clothing1m,
    "webvision": webvision,
}
"""Readers by name, from the folder of a download, the folder of the tables and the size of a subset to `[data]`."""

WHERE = {
    "cifar100": "hf:uoft-cs/cifar100, or the folder cifar-100-binary of https://www.cs.toronto.edu/~kriz/cifar.html",
    "clothing1m": "the folder of Clothing1M, which its authors give on request (Xiao et al., CVPR 2015)",
    "webvision": "the folder of WebVision 1.0, https://data.vision.ee.ethz.ch/cvl/webvision/download.html",
}
"""Sources of the data, for the message that they are missing."""


def load(loader: str, path: str, out: Path, subset: int) -> dict[str, Any]:
    """Return the fields of `[data]` for one of the paper's data sets; the same download gives the same tables.

    Args:
        loader: A name of `LOADERS`.
        path: Folder of the download, or `hf:NAME` for CIFAR-100.
        out: Folder of the tables.
        subset: Training images to draw; 0 takes all. For Clothing1M alone.

    Raises:
        UserError: The data are missing or malformed.
    """
    if path.startswith("hf:") and loader == "cifar100":
        return {"data": path, "image": "img", "label": "fine_label"}
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{path} is not a folder")
    return LOADERS[loader](root, out, subset)
