"""Backbones before any training: an architecture with random weights, which `pretrain` begins from."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from cleantune.backbones.architectures import ARCHITECTURES
from cleantune.backbones.backbone import Backbone
from cleantune.backbones.loading import open_backbone, read_architecture, resolve_model_folder
from cleantune.backbones.preprocess import ImagePreprocess
from cleantune.backbones.transformers_logging import quiet_transformers
from cleantune.errors import UserError, did_you_mean

RECIPES: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet-small": (
        "resnet",
        {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        32,
    ),
    "resnet-18": (
        "resnet",
        {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        224,
    ),
    "resnet-50": ("resnet", {}, 224),
}
"""By name: architecture, what its configuration of transformers is told, and the side of its images in pixels."""
_BESIDE = ("*.json", "*.txt", "*.model")
"""Files of a checkpoint folder that are not weights: configuration, preprocessing, tokenizer."""


def random_backbone(
    name: str, *, seed: int = 0, image_size: int | None = None, max_length: int | None = None
) -> Backbone:
    """A backbone with random weights, as transformers initializes them.

    Args:
        name: A recipe, or a transformers folder or hub id, of which everything but the weights is taken.
        seed: Of the weights; the global generator is not touched.
        image_size: Side of the images in pixels; left out: the recipe's or the folder's.
        max_length: Tokens of a text.

    Raises:
        UserError: No recipe or folder of that name, or an unknown architecture.
    """
    with tempfile.TemporaryDirectory(prefix="cleantune-") as place:
        folder = Path(place) / "model"
        folder.mkdir()
        if name in RECIPES:
            kind, changes, side = RECIPES[name]
        else:
            kind, changes, side = _copied(name, folder), {}, 0
        _draw(folder, kind, changes, seed)
        if side:
            square = ImagePreprocess((side, side), (0.5,) * 3, (0.5,) * 3, exact=(side, side))
            text = json.dumps(square.config() | {"size": {"height": side, "width": side}})
            (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
        made = open_backbone(folder, image_size=image_size, max_length=max_length)
    made.source = name
    return made


def _copied(name: str, folder: Path) -> str:
    """The architecture of a folder or hub id, whose files but for the weights are put into `folder`."""
    try:
        source = resolve_model_folder(name)
    except UserError as error:
        raise UserError(f'--backbone "{name}" is no recipe{did_you_mean(name, RECIPES)}; and {error}') from None
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            shutil.copy(file, folder / file.name)
    return read_architecture(source).model_type


def _draw(folder: Path, kind: str, changes: dict[str, Any], seed: int) -> None:
    """Random weights and their configuration into a folder."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        cls = getattr(transformers, ARCHITECTURES[kind].model_class)
        stated = (folder / "config.json").is_file()
        config = cls.config_class.from_pretrained(folder) if stated else cls.config_class(**changes)
        cls(config).save_pretrained(folder)
