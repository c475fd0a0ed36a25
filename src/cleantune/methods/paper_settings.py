"""Optimizer settings of TURN's paper by backbone (arXiv:2310.17668, Table 8), as stages of the preset `paper`."""

from __future__ import annotations

from typing import Literal

from cleantune.methods.protocol import Stage

Settings = tuple[Literal["adamw", "sgd"], float, float]

TABLE_8: dict[str, tuple[Settings, Settings]] = {
    "vit": (("sgd", 1e-2, 1e-3), ("sgd", 1e-2, 1e-5)),
    "convnext": (("sgd", 1e-1, 1e-4), ("adamw", 1e-4, 1e-4)),
    "vit_mae": (("adamw", 1e-2, 1e-5), ("adamw", 1e-4, 1e-3)),
    "vit_msn": (("sgd", 1e-2, 1e-2), ("sgd", 1e-3, 1e-5)),
    "clip": (("adamw", 1e-3, 1e-6), ("adamw", 1e-5, 1e-5)),
    "resnet": (("adamw", 1e-3, 1e-5), ("adamw", 1e-3, 1e-5)),
}
"""Optimizer, learning rate and weight decay by backbone, for linear probing and for full fine-tuning."""

NEAREST = {
    "swin": "vit", "dinov2": "vit_msn", "siglip": "clip", "clip_vision_model": "clip", "siglip_vision_model": "clip",
    "mobilenet_v2": "resnet", "bert": "clip", "roberta": "clip", "mpnet": "clip", "modernbert": "clip",
}  # fmt: skip
"""Row of Table 8 for backbones that are not in the paper; all others take that of resnet."""


def paper_row(backbone: str) -> str:
    """Return the row of Table 8 for a backbone type."""
    return backbone if backbone in TABLE_8 else NEAREST.get(backbone, "resnet")


def paper_probe(backbone: str, epochs: int = 20) -> Stage:
    """Return the paper's linear probing: batches of 128, constant learning rate."""
    optimizer, rate, decay = TABLE_8[paper_row(backbone)][0]
    return Stage(epochs, rate, None, decay, optimizer, "constant", batch_size=128)


def paper_tune(backbone: str, epochs: int) -> Stage:
    """Return the paper's full fine-tuning: batches of 128, one constant learning rate for head and backbone."""
    optimizer, rate, decay = TABLE_8[paper_row(backbone)][1]
    return Stage(epochs, rate, rate, decay, optimizer, "constant", batch_size=128, freeze_batchnorm=False)
