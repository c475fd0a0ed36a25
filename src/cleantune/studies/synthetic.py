"""Create synthetic data and tiny random networks, with which a study can be tried on any machine.

There are 200 images in the layouts of the public downloads, tables of images, texts and features, and untrained
networks of every architecture. A study on them shows that it runs from its file to its page; its numbers mean nothing.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cleantune.errors import UserError, did_you_mean
from cleantune.methods.nmtune import TEXT_BACKBONES

NUM_SAMPLES = 200
NUM_TRAIN, NUM_VALIDATION = 140, 20
"""Training and validation images; the others are test images."""
NUM_CLASSES = 5
NUM_WORDS = 31
IMAGE_SIZE = 32
EMBEDDING_DIM = 16


def images(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images [200, 32, 32, 3] of a disc, colored and placed by class, and labels [200] that alternate."""
    rng = np.random.default_rng(seed)
    y = np.arange(NUM_SAMPLES) % NUM_CLASSES
    height, width = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    pixels = rng.integers(0, 90, (NUM_SAMPLES, IMAGE_SIZE, IMAGE_SIZE, 3))
    for i, c in enumerate(y):
        angle = 2 * np.pi * c / NUM_CLASSES
        middle = 16 + 7 * np.array([np.sin(angle), np.cos(angle)]) + rng.normal(0, 1, 2)
        disc = (height - middle[0]) ** 2 + (width - middle[1]) ** 2 < 36
        pixels[i, disc] += (np.array([c % 2, c // 2 % 2, c // 4]) * 80 + 60).astype(np.int64)
    return pixels.clip(0, 255).astype(np.uint8), y


def cifar100(folder: Path) -> None:
    """Write the layout of `cifar-100-binary` with five classes."""
    pixels, y = images()
    folder.mkdir(parents=True, exist_ok=True)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(y), -1)
    records = np.concatenate([np.zeros((len(y), 1), np.uint8), y[:, None].astype(np.uint8), planes], 1)
    records[: NUM_TRAIN + NUM_VALIDATION].tofile(folder / "train.bin")
    records[NUM_TRAIN + NUM_VALIDATION :].tofile(folder / "test.bin")
    _write(folder / "fine_label_names.txt", [f"disc_{c}" for c in range(NUM_CLASSES)])


def clothing1m(folder: Path) -> None:
    """Write the layout of Clothing1M with images of five of its classes; 30 % of the training labels are redrawn."""
    pixels, y = images()
    names = [_picture(folder, f"images/{c}/{i:04d}.jpg", x) for i, (x, c) in enumerate(zip(pixels, y, strict=True))]
    rng = np.random.default_rng(1)
    noisy = np.where(rng.random(len(y)) < 0.3, rng.integers(0, NUM_CLASSES, len(y)), y)
    ends = (NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION)
    _write(folder / "noisy_label_kv.txt", [f"{n} {c}" for n, c in zip(names[: ends[0]], noisy, strict=False)])
    _write(folder / "clean_label_kv.txt", [f"{n} {c}" for n, c in zip(names[ends[0] :], y[ends[0] :], strict=True)])
    _write(folder / "noisy_train_key_list.txt", names[: ends[0]])
    _write(folder / "clean_val_key_list.txt", names[ends[0] : ends[1]])
    _write(folder / "clean_test_key_list.txt", names[ends[1] :])


def webvision(folder: Path) -> None:
    """Write the layout of WebVision 1.0 with images of five of its first fifty classes and one line of another."""
    pixels, y = images()
    split = NUM_TRAIN + NUM_VALIDATION
    train = [_picture(folder, f"google/q{c:04d}/{i:04d}.jpg", pixels[i]) for i, c in enumerate(y[:split])]
    test = [_picture(folder / "val_images_256", f"val{i:06d}.jpg", pixels[i]) for i in range(split, len(y))]
    lines = [f"{name} {c}" for name, c in zip(train, y, strict=False)]
    _write(folder / "info" / "train_filelist_google.txt", [*lines, "google/q0099/none.jpg 999"])
    _write(folder / "info" / "val_filelist.txt", [f"{n} {c}" for n, c in zip(test, y[split:], strict=True)])


def _picture(folder: Path, name: str, pixels: np.ndarray) -> str:
    from PIL import Image

    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, quality=95)
    return name


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


DOWNLOADS: dict[str, Callable[[Path], None]] = {"cifar100": cifar100, "clothing1m": clothing1m, "webvision": webvision}
"""Writers of the synthetic downloads by loader."""

_VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": IMAGE_SIZE, "patch_size": 8,
}  # fmt: skip
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", _VIT),
    "convnext": (
        "ConvNextModel", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": IMAGE_SIZE},
    ),
    "vit_mae": (
        "ViTMAEForPreTraining",
        _VIT | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                "decoder_intermediate_size": 32},
    ),
    "vit_msn": ("ViTMSNModel", _VIT),
    "clip": ("CLIPVisionModel", _VIT),
    "swin": (
        "SwinModel",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": IMAGE_SIZE,
         "patch_size": 4},
    ),
    "resnet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
}  # fmt: skip
"""Class of transformers and settings of a tiny network, by architecture."""


def image_network(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint folder of a tiny random network of an architecture for images of 32 pixels."""
    import torch

    from cleantune.backbones import quiet_transformers

    with quiet_transformers(), torch.random.fork_rng():
        import transformers

        name, settings = NETWORKS[architecture]
        cls = getattr(transformers, name)
        torch.manual_seed(seed)
        model = cls(cls.config_class(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "size": size, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_resize": True, "do_rescale": True, "do_normalize": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


def text_network(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint folder of a tiny random BERT with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from cleantune.backbones import quiet_transformers

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(NUM_WORDS))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=40,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, model_max_length=36, model_input_names=["input_ids", "attention_mask"],
            **{f"{n}_token": s for n, s in zip(("pad", "cls", "sep", "unk", "mask"), special, strict=True)},
        ).save_pretrained(folder)  # fmt: skip
    return folder


def make_network(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Return the checkpoint folder of a tiny random network; it is written unless it exists.

    Raises:
        UserError: There is no synthetic network of the architecture.
    """
    if architecture not in (*NETWORKS, *TEXT_BACKBONES):
        hint = did_you_mean(architecture, (*NETWORKS, *TEXT_BACKBONES))
        raise UserError(f'there is no synthetic network of the architecture "{architecture}"{hint}')

    def write(draft: Path) -> None:
        if architecture in NETWORKS:
            image_network(architecture, draft, seed)
        else:
            text_network(draft, seed)

    return _write_folder(folder, write)


def make_download(loader: str, folder: Path) -> Path:
    """Return the folder of a synthetic download; it is written unless it exists."""
    return _write_folder(folder, DOWNLOADS[loader])


def _write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder under another name first, so that an interrupted one is not used."""
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        draft.rename(folder)
    return folder


def make_table(folder: Path, kind: str, *, numeric_labels: bool = False, domains: Sequence[str] = ()) -> Path:
    """Return a table of samples of a kind with labels and optional domains; it is written unless it exists.

    Args:
        folder: Folder of the table.
        kind: `image`, `text` or `features`.
        numeric_labels: Whether labels are numbers instead of names.
        domains: Names of domains, which are assigned at random.

    Returns:
        A Parquet file, or an .npz file of features; columns have the plain names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "-".join([kind, "numbers" if numeric_labels else "classes", *domains]).replace(" ", "_").replace("/", "_")
    path = folder / (f"{name}.npz" if kind == "features" else f"{name}.parquet")
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pixels, y = images()
    rng = np.random.default_rng(1)
    labels = [str(c / 2) if numeric_labels else f"class {c}" for c in y]
    if kind == "features":
        centers = 2 * np.eye(NUM_CLASSES, EMBEDDING_DIM, dtype=np.float32)
        x = rng.normal(size=(NUM_SAMPLES, EMBEDDING_DIM)).astype(np.float32) + centers[y]
        np.savez(path, features=x, label=np.array(labels))
        return path
    columns: dict[str, Any] = {"label": labels}
    if domains:
        columns["domain"] = [domains[int(k)] for k in rng.integers(0, len(domains), NUM_SAMPLES)]
    if kind == "text":
        columns["text"] = [" ".join(f"w{(c * 6 + k) % NUM_WORDS}" for k in rng.integers(0, 6, 4)) for c in y]
    else:
        columns["image"] = [{"bytes": _png(x), "path": None} for x in pixels]
    pq.write_table(pa.table(columns), path)
    return path


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
