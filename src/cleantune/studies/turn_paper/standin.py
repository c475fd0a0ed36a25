"""The stand-in: 200 made-up images in the layouts of the public downloads, and tiny random networks.

It shows that an experiment runs from its file to its page on any machine. Its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = 200
TRAIN, VALIDATION = 140, 20
"""Images of training (and, where a layout has one, validation); the others are test."""
CLASSES = 5
SIDE = 32


def images(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [200, 32, 32, 3] of uint8 and their labels: a bright disc on a noisy ground, colored and placed by class.

    Labels go round, so that every part of the rows has all classes.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(IMAGES) % CLASSES
    height, width = np.mgrid[:SIDE, :SIDE]
    pixels = rng.integers(0, 90, (IMAGES, SIDE, SIDE, 3))
    for i, c in enumerate(y):
        angle = 2 * np.pi * c / CLASSES
        middle = 16 + 7 * np.array([np.sin(angle), np.cos(angle)]) + rng.normal(0, 1, 2)
        disc = (height - middle[0]) ** 2 + (width - middle[1]) ** 2 < 36
        pixels[i, disc] += (np.array([c % 2, c // 2 % 2, c // 4]) * 80 + 60).astype(np.int64)
    return pixels.clip(0, 255).astype(np.uint8), y


def cifar100(folder: Path) -> None:
    """As `cifar-100-binary`, with five classes."""
    pixels, y = images()
    folder.mkdir(parents=True, exist_ok=True)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(y), -1)
    records = np.concatenate([np.zeros((len(y), 1), np.uint8), y[:, None].astype(np.uint8), planes], 1)
    records[: TRAIN + VALIDATION].tofile(folder / "train.bin")
    records[TRAIN + VALIDATION :].tofile(folder / "test.bin")
    _write(folder / "fine_label_names.txt", [f"disc_{c}" for c in range(CLASSES)])


def clothing1m(folder: Path) -> None:
    """As Clothing1M, with images of five of its classes; three labels in ten of training are wrong."""
    pixels, y = images()
    names = [_picture(folder, f"images/{c}/{i:04d}.jpg", x) for i, (x, c) in enumerate(zip(pixels, y, strict=True))]
    rng = np.random.default_rng(1)
    noisy = np.where(rng.random(len(y)) < 0.3, rng.integers(0, CLASSES, len(y)), y)
    ends = (TRAIN, TRAIN + VALIDATION)
    _write(folder / "noisy_label_kv.txt", [f"{n} {c}" for n, c in zip(names[: ends[0]], noisy, strict=False)])
    _write(folder / "clean_label_kv.txt", [f"{n} {c}" for n, c in zip(names[ends[0] :], y[ends[0] :], strict=True)])
    _write(folder / "noisy_train_key_list.txt", names[: ends[0]])
    _write(folder / "clean_val_key_list.txt", names[ends[0] : ends[1]])
    _write(folder / "clean_test_key_list.txt", names[ends[1] :])


def webvision(folder: Path) -> None:
    """As WebVision 1.0, with images of five of its first fifty classes and one line of another class."""
    pixels, y = images()
    split = TRAIN + VALIDATION
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
"""By loader."""

_VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", _VIT),
    "convnext": ("ConvNextModel", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE}),
    "vit_mae": (
        "ViTMAEForPreTraining",
        _VIT | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                "decoder_intermediate_size": 32},
    ),
    "vit_msn": ("ViTMSNModel", _VIT),
    "clip": ("CLIPVisionModel", _VIT),
    "swin": ("SwinModel", {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIDE,
                           "patch_size": 4}),
    "resnet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
}  # fmt: skip
"""By the architectures of the experiments: class of transformers, and settings that make it tiny."""


def network(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of a tiny random network of an architecture, for images of 32 pixels."""
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
    size = {"height": SIDE, "width": SIDE}
    stated = {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2, "rescale_factor": 1 / 255,
              "image_mean": [0.5] * 3, "image_std": [0.25] * 3}  # fmt: skip
    stated |= dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    (folder / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return folder
