"""Preprocessing of images and texts for a network, read from the checkpoint's own files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cleantune.errors import UserError

_SHORTEST_EDGE = ("CLIP", "ConvNext", "MobileNetV1", "MobileNetV2", "Bit", "Siglip")
"""Processors that read a single number as the shortest edge; the others read it as a square."""
_CONVNEXT_SQUARE_FROM = 384
"""Size from which on ConvNeXt's processor resizes to a square; below, it crops a margin."""


@dataclass(frozen=True)
class ImagePreprocess:
    """Resizing, center crop and normalization of images.

    At most one of `shortest_edge` and `exact` is set; with neither, images are cropped without resizing.
    """

    crop: tuple[int, int]
    """Height and width of the network's input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest_edge: int | None = None
    """Length of the shorter edge before the crop."""
    exact: tuple[int, int] | None = None
    """Height and width before the crop, whatever the aspect ratio."""
    resample: int = 2
    """Pillow's number of the resampling filter."""
    scale: float = 1 / 255
    """Factor of the pixels before mean and standard deviation apply."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.crop

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def to_array(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """Resize and crop one image; channels come last."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        height, width = self._resized_size(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        if (height, width) != self.crop:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.asarray(image)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width before the crop."""
        if self.shortest_edge is None:
            return self.exact or (height, width)
        short, long = sorted((width, height))
        other = int(self.shortest_edge * long / short)
        return (self.shortest_edge, other) if width > height else (other, self.shortest_edge)

    def normalize(self, pixels: Tensor) -> Float[Tensor, "B 3 H W"]:
        """Return network inputs from pixels of 0 to 255, uint8 or float, in the same memory format."""
        std = torch.tensor(self.std, device=pixels.device)
        factor, shift = self.scale / std, torch.tensor(self.mean, device=pixels.device) / std
        return pixels * factor.view(-1, 1, 1) - shift.view(-1, 1, 1)

    def with_size(self, size: int) -> ImagePreprocess:
        """Return the same normalization at another size: shortest edge to `size`, then center crop of `size`."""
        return dataclasses.replace(self, shortest_edge=size, exact=None, crop=(size, size))

    def to_config(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, in the form of transformers' generic processor."""
        edge = {"shortest_edge": self.shortest_edge}
        exact = {"height": self.exact[0], "width": self.exact[1]} if self.exact else None
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": self.shortest_edge is not None or self.exact is not None,
            "size": exact or (edge if self.shortest_edge else {"height": self.crop[0], "width": self.crop[1]}),
            "resample": self.resample,
            "do_center_crop": self.exact != self.crop,
            "crop_size": {"height": self.crop[0], "width": self.crop[1]},
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def read_image_preprocess(folder: Path, image_size: int | None) -> ImagePreprocess:
    """Read the preprocessing of a checkpoint folder.

    Args:
        folder: Folder with `preprocessor_config.json`, or `processor_config.json` with an `image_processor` part.
        image_size: Shortest edge and center crop, in place of the sizes of the file.

    Raises:
        UserError: There is no such file, or its settings do not give images of one size.
    """
    path, config = _image_config(folder)
    normalize = config.get("do_normalize", True)
    base = ImagePreprocess(
        crop=(0, 0),
        mean=tuple(map(float, _three(config.get("image_mean", 0.0), path))) if normalize else (0.0,) * 3,
        std=tuple(map(float, _three(config.get("image_std", 1.0), path))) if normalize else (1.0,) * 3,
        resample=int(config.get("resample", 2)),
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
    )
    if image_size is not None:
        return base.with_size(image_size)
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size = _size(config.get("size"), shortest=kind.startswith(_SHORTEST_EDGE)) if config.get("do_resize", True) else {}
    crop = _size(config.get("crop_size"), shortest=False) if config.get("do_center_crop", False) else {}
    edge = size.get("shortest_edge")
    if kind.startswith("ConvNext") and edge:
        if edge >= _CONVNEXT_SQUARE_FROM:
            size, edge = {"height": edge, "width": edge}, None
        else:
            crop = {"height": edge, "width": edge}
            edge = int(edge / float(config.get("crop_pct") or 224 / 256))
    exact = (size["height"], size["width"]) if set(size) == {"height", "width"} else None
    if config.get("do_pad") or size.get("longest_edge") or not (crop or exact) or (size and not (edge or exact)):
        raise UserError(
            f"{path} gives images of different sizes, which do not fit into a batch: set one size with --image-size"
        )
    window = (crop["height"], crop["width"]) if crop else cast(tuple[int, int], exact)
    return dataclasses.replace(base, crop=window, shortest_edge=edge, exact=exact)


def _image_config(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            config = read_json(path)
            nested = config.get("image_processor")
            return path, nested if isinstance(nested, dict) else config
    raise UserError(
        f"the model folder {folder} has no preprocessor_config.json, which states the size, mean and deviation that "
        "the network was trained with: copy it from where the model comes from"
    )


def _size(value: Any, *, shortest: bool) -> dict[str, int]:
    if value is None:
        return {}
    if isinstance(value, int):
        return {"shortest_edge": value} if shortest else {"height": value, "width": value}
    if isinstance(value, Sequence):
        return {"height": int(value[0]), "width": int(value[1])}
    return {key: int(side) for key, side in value.items() if side is not None}


def _three(value: Any, path: Path) -> list[float]:
    values = [float(value)] * 3 if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != 3:
        raise UserError(f"{path} normalizes {len(values)} channels, but images here have 3: use a model of RGB images")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        UserError: The file cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} of the model cannot be read ({error}): fetch the model again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} of the model is no JSON object: fetch the model again")
    return value


class TextPreprocess:
    """A tokenizer with its maximum length.

    Attributes:
        max_length: Most tokens of a text, special ones included; longer texts are truncated.
        fingerprint: SHA-256 over the tokenizer, the length and the casing.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, lowercase: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.lowercase = lowercase
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.special_ids = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.int32)
        state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
        self.fingerprint = hashlib.sha256(f"{max_length} {lowercase} {state}".encode()).hexdigest()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, special tokens included, without padding."""
        texts = [text.lower() for text in texts] if self.lowercase else list(texts)
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=False, return_attention_mask=False
        )
        return cast(list[list[int]], encoded["input_ids"])


Preprocess = ImagePreprocess | TextPreprocess
