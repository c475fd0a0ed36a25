"""Backbones with random weights, from which `pretrain` starts."""

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
"""Architecture, arguments of its configuration and side of the images in pixels, by name."""
_NOT_WEIGHTS = ("*.json", "*.txt", "*.model")
"""Files of a checkpoint folder for configuration, preprocessing and tokenizer."""


def random_backbone(
    name: str, *, seed: int = 0, image_size: int | None = None, max_length: int | None = None
) -> Backbone:
    """Return a backbone with random weights, as transformers initializes them.

    Args:
        name: Recipe, or transformers folder or hub id, of which everything but the weights is used.
        seed: Seed of the weights; the global generator is left as it is.
        image_size: Side of the images in pixels; None: that of the recipe or folder.
        max_length: Most tokens of a text.

    Raises:
        UserError: There is no recipe or folder of this name, or its architecture is unknown.
    """
    with tempfile.TemporaryDirectory(prefix="cleantune-") as parent:
        folder = Path(parent) / "model"
        folder.mkdir()
        if name in RECIPES:
            model_type, settings, side = RECIPES[name]
        else:
            model_type, settings, side = _copy_settings(name, folder), {}, 0
        _save_random_weights(folder, model_type, settings, seed)
        if side:
            square = ImagePreprocess((side, side), (0.5,) * 3, (0.5,) * 3, exact=(side, side))
            text = json.dumps(square.to_config() | {"size": {"height": side, "width": side}})
            (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
        backbone = open_backbone(folder, image_size=image_size, max_length=max_length)
    backbone.source = name
    return backbone


def _copy_settings(name: str, folder: Path) -> str:
    """Copy the files of a model other than its weights into a folder, and return its `model_type`."""
    try:
        source = resolve_model_folder(name)
    except UserError as error:
        raise UserError(f'--backbone "{name}" is no recipe{did_you_mean(name, RECIPES)}; and {error}') from None
    for pattern in _NOT_WEIGHTS:
        for file in source.glob(pattern):
            shutil.copy(file, folder / file.name)
    return read_architecture(source).model_type


def _save_random_weights(folder: Path, model_type: str, settings: dict[str, Any], seed: int) -> None:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        cls = getattr(transformers, ARCHITECTURES[model_type].model_class)
        has_config = (folder / "config.json").is_file()
        config = cls.config_class.from_pretrained(folder) if has_config else cls.config_class(**settings)
        cls(config).save_pretrained(folder)
