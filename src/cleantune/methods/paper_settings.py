"""The optimizer settings of TURN's paper by backbone (arXiv:2310.17668, Table 8), as stages of the preset `paper`."""

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
"""Backbone -> (optimizer, learning rate, weight decay) of linear probing, the same of full fine-tuning."""

NEAREST = {
    "swin": "vit", "dinov2": "vit_msn", "siglip": "clip", "clip_vision_model": "clip", "siglip_vision_model": "clip",
    "mobilenet_v2": "resnet", "bert": "clip", "roberta": "clip", "mpnet": "clip", "modernbert": "clip",
}  # fmt: skip
"""Backbones the paper did not have, by the row of Table 8 that they borrow; any other borrows resnet's."""


def paper_row(backbone: str) -> str:
    """The row of Table 8 for a backbone type, which is its own or a borrowed one."""
    return backbone if backbone in TABLE_8 else NEAREST.get(backbone, "resnet")


def paper_probe(backbone: str, epochs: int = 20) -> Stage:
    """Linear probing as in the paper: batch 128, constant rate."""
    optimizer, rate, decay = TABLE_8[paper_row(backbone)][0]
    return Stage(epochs, rate, None, decay, optimizer, "constant", batch_size=128)


def paper_tune(backbone: str, epochs: int) -> Stage:
    """Full fine-tuning as in the paper: batch 128, constant rate, the same for head and backbone."""
    optimizer, rate, decay = TABLE_8[paper_row(backbone)][1]
    return Stage(epochs, rate, rate, decay, optimizer, "constant", batch_size=128, freeze_batchnorm=False)
