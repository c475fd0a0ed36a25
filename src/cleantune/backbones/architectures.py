"""The one table of what cleantune opens: which feature each architecture gives, and who else computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Mode = Literal["cls", "max", "mean", "mean_sqrt", "pooler"]
"""One way from tokens to a vector; several are concatenated."""

POOLING_DESCRIPTIONS: dict[Mode, str] = {
    "cls": "first token",
    "max": "maximum over the tokens",
    "mean": "mean of the tokens",
    "mean_sqrt": "sum of the tokens over the square root of their number",
    "pooler": "the architecture's own pooling",
}


@dataclass(frozen=True)
class Pooling:
    """How the backbone's tokens become one vector."""

    modes: tuple[Mode, ...]
    norm: Literal["none", "l2", "layer"] = "none"
    """What is done to the vector: nothing, unit length, or a layer norm without parameters."""
    patches_only: bool = False
    """Whether `mean` is over the patches alone, without the first token."""


@dataclass(frozen=True)
class Architecture:
    """What is known of one `model_type` of transformers."""

    model_type: str
    kind: Literal["image", "text"]
    feature: str
    """What the feature is, in words."""
    native: str | None
    """The class of transformers whose classifier sees the same feature, or None: then the model has our own form."""
    learning_rate: float
    """For the backbone in full fine-tuning by AdamW with warm-up; text: of a width of 768."""
    has_batchnorm: bool
    """Whether running statistics of batches are part of the network."""
    model_class: str
    """The class of transformers that is the backbone."""
    pooling: Pooling
    has_position_embeddings: bool = False
    """Whether the input size is fixed by learned position embeddings, which `image_size` then resamples."""


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
            "first token (CLS) and mean of the patches after the final norm, side by side",
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
"""By transformers' `model_type`.

CLIP, SigLIP, BERT, RoBERTa and MPNet have no native form: transformers' classifiers of these see another feature (the
mean of the patches, or the first token after a further layer), which is worse on a frozen backbone.
"""

ALIASES = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "xlm-roberta": "roberta"}
"""Model types that are opened as another one of the table."""


def pool(
    hidden: Float[Tensor, "B T D"], mask: Int[Tensor, "B T"] | None, pooling: Pooling, eps: float = 1e-5
) -> Float[Tensor, "B Z"]:
    """One vector of each sample from its tokens.

    Args:
        hidden: The last layer's tokens.
        mask: 1 where a token is real; None where all are.
        pooling: The modes, in the order in which they are concatenated; `pooler` is not among them.
        eps: Of the layer norm.

    Returns:
        One row per sample, as wide as the backbone times the number of modes.

    Source: sentence-transformers' Pooling module, whose files `1_Pooling/config.json` this follows.
    """
    parts = [_pooled(hidden, mask, mode, pooling.patches_only) for mode in pooling.modes]
    f = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    if pooling.norm == "l2":
        return functional.normalize(f, dim=1)
    if pooling.norm == "layer":
        return functional.layer_norm(f, f.shape[1:], eps=eps)
    return f


def _pooled(hidden: Tensor, mask: Tensor | None, mode: Mode, patches_only: bool) -> Tensor:
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
    """The feature that a sentence-transformers folder asks for, in words."""
    words = " beside ".join(POOLING_DESCRIPTIONS[mode] for mode in pooling.modes)
    return f"{words} of the last layer{', scaled to unit length' if pooling.norm == 'l2' else ''}"


def table() -> Sequence[dict[str, Any]]:
    """The architectures as rows for a listing: name, kind, feature, native class."""
    return [
        {"architecture": a.model_type, "kind": a.kind, "feature": a.feature, "native": a.native or "-"}
        for a in ARCHITECTURES.values()
    ]
