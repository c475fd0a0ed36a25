"""Table of the architectures that cleantune opens, with the feature of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Mode = Literal["cls", "max", "mean", "mean_sqrt", "pooler"]
"""Pooling of tokens to a vector; the vectors of several modes are concatenated."""

POOLING_DESCRIPTIONS: dict[Mode, str] = {
    "cls": "first token",
    "max": "maximum over the tokens",
    "mean": "mean of the tokens",
    "mean_sqrt": "sum of the tokens over the square root of their number",
    "pooler": "the architecture's own pooling",
}


@dataclass(frozen=True)
class Pooling:
    """Pooling of the tokens of a backbone to one vector."""

    modes: tuple[Mode, ...]
    norm: Literal["none", "l2", "layer"] = "none"
    """Normalization of the vector: none, unit length, or a layer norm without parameters."""
    patches_only: bool = False
    """True if `mean` excludes the first token."""


@dataclass(frozen=True)
class Architecture:
    """Properties of one `model_type` of transformers."""

    model_type: str
    kind: Literal["image", "text"]
    feature: str
    """Description of the feature."""
    native_class: str | None
    """Class of transformers whose classifier takes the same feature; None: models are saved in our own form."""
    learning_rate: float
    """Learning rate of full fine-tuning by AdamW with warm-up, in batches of 64; for text at a width of 768."""
    has_batchnorm: bool
    """True if the network has BatchNorm layers."""
    model_class: str
    """Class of transformers of the backbone."""
    pooling: Pooling
    has_position_embeddings: bool = False
    """True if learned position embeddings fix the input size; `image_size` interpolates them."""


_CLS, _POOLER, _MEAN = Pooling(("cls",)), Pooling(("pooler",)), Pooling(("mean",))
_AFTER_NORM = "first token (CLS) after the final norm"
_TOKENS = "mean of the tokens of the last layer"

ARCHITECTURES: dict[str, Architecture] = {
    a.model_type: a
    for a in (
        Architecture(
            "vit",
            "image",
            _AFTER_NORM,
            "ViTForImageClassification",
            5e-5,
            False,
            "ViTModel",
            _CLS,
            has_position_embeddings=True,
        ),
        Architecture(
            "vit_mae",
            "image",
            f"{_AFTER_NORM}, of a plain ViT that takes the encoder's weights (nothing is masked)",
            "ViTForImageClassification",
            1e-4,
            False,
            "ViTModel",
            _CLS,
            has_position_embeddings=True,
        ),
        Architecture(
            "vit_msn",
            "image",
            _AFTER_NORM,
            "ViTMSNForImageClassification",
            5e-5,
            False,
            "ViTMSNModel",
            _CLS,
            has_position_embeddings=True,
        ),
        Architecture(
            "dinov2",
            "image",
            "first token (CLS) and mean of the patches after the final norm, concatenated",
            "Dinov2ForImageClassification",
            1e-5,
            False,
            "Dinov2Model",
            Pooling(("cls", "mean"), patches_only=True),
        ),
        Architecture(
            "clip",
            "image",
            "first token (CLS) after the post-norm, before the projection",
            None,
            1e-5,
            False,
            "CLIPVisionModel",
            _POOLER,
            has_position_embeddings=True,
        ),
        Architecture(
            "siglip",
            "image",
            "output of the attention pooling head",
            None,
            1e-5,
            False,
            "SiglipVisionModel",
            _POOLER,
            has_position_embeddings=True,
        ),
        Architecture(
            "swin",
            "image",
            "mean of the patches after the final norm",
            "SwinForImageClassification",
            1e-4,
            False,
            "SwinModel",
            _POOLER,
        ),
        Architecture(
            "convnext",
            "image",
            "global average pool, then layer norm",
            "ConvNextForImageClassification",
            1e-4,
            False,
            "ConvNextModel",
            _POOLER,
        ),
        Architecture(
            "resnet",
            "image",
            "global average pool",
            "ResNetForImageClassification",
            1e-3,
            True,
            "ResNetModel",
            _POOLER,
        ),
        Architecture(
            "mobilenet_v2",
            "image",
            "global average pool of the last 1 x 1 convolution",
            "MobileNetV2ForImageClassification",
            5e-4,
            True,
            "MobileNetV2Model",
            _POOLER,
        ),
        Architecture("bert", "text", _TOKENS, None, 1.5e-5, False, "BertModel", _MEAN),
        Architecture("roberta", "text", _TOKENS, None, 1e-5, False, "RobertaModel", _MEAN),
        Architecture("mpnet", "text", _TOKENS, None, 1.5e-5, False, "MPNetModel", _MEAN),
        Architecture(
            "modernbert",
            "text",
            f"{_TOKENS}, then a layer norm without parameters",
            "ModernBertForSequenceClassification",
            1.5e-5,
            False,
            "ModernBertModel",
            Pooling(("mean",), norm="layer"),
        ),
    )
}
"""Architectures by transformers' `model_type`.

CLIP, SigLIP, BERT, RoBERTa and MPNet have no native class: transformers' classifiers of these take another feature (the
mean of the patches, or the first token after a further layer), which is worse on a frozen backbone.
"""

ALIASES = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "xlm-roberta": "roberta"}
"""Model types that are opened as another one."""


def pool(
    hidden: Float[Tensor, "B T D"], mask: Int[Tensor, "B T"] | None, pooling: Pooling, eps: float = 1e-5
) -> Float[Tensor, "B Z"]:
    """Pool the tokens of each sample to one vector.

    Args:
        hidden: Tokens of the last layer.
        mask: 1 for tokens, 0 for padding; None if there is no padding.
        pooling: Modes in the order of concatenation, without `pooler`.
        eps: Epsilon of the layer norm.

    Returns:
        Vectors of the width of the tokens times the number of modes.

    Source: the module Pooling of sentence-transformers, with its file `1_Pooling/config.json`.
    """
    parts = [_pool_by_mode(hidden, mask, mode, pooling.patches_only) for mode in pooling.modes]
    f = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    if pooling.norm == "l2":
        return functional.normalize(f, dim=1)
    if pooling.norm == "layer":
        return functional.layer_norm(f, f.shape[1:], eps=eps)
    return f


def _pool_by_mode(hidden: Tensor, mask: Tensor | None, mode: Mode, patches_only: bool) -> Tensor:
    if mode == "cls":
        return hidden[:, 0]
    if mask is None:
        tokens = hidden[:, 1:] if patches_only else hidden
        return tokens.amax(dim=1) if mode == "max" else tokens.mean(dim=1)
    real = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "max":
        return hidden.masked_fill(real == 0, -torch.inf).amax(dim=1)
    count = real.sum(dim=1).clamp(min=1)
    return (hidden * real).sum(dim=1) / (count.sqrt() if mode == "mean_sqrt" else count)


def describe_pooling(pooling: Pooling) -> str:
    """Describe the feature of a sentence-transformers folder."""
    words = " and ".join(POOLING_DESCRIPTIONS[mode] for mode in pooling.modes)
    return f"{words} of the last layer{', scaled to unit length' if pooling.norm == 'l2' else ''}"


def list_architectures() -> list[dict[str, str]]:
    """Return a row for each architecture: name, modality, feature and native class."""
    return [
        {"architecture": a.model_type, "kind": a.kind, "feature": a.feature, "native": a.native_class or "-"}
        for a in ARCHITECTURES.values()
    ]
