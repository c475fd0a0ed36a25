"""Pre-trained networks: loading, features and preprocessing."""

from cleantune.backbones.architectures import ARCHITECTURES, Architecture, Pooling, list_architectures
from cleantune.backbones.backbone import Backbone
from cleantune.backbones.loading import open_backbone
from cleantune.backbones.preprocess import ImagePreprocess, Preprocess, TextPreprocess, read_image_preprocess
from cleantune.backbones.random_init import RECIPES, random_backbone
from cleantune.backbones.transformers_logging import quiet_transformers

__all__ = [
    "ARCHITECTURES",
    "RECIPES",
    "Architecture",
    "Backbone",
    "ImagePreprocess",
    "Pooling",
    "Preprocess",
    "TextPreprocess",
    "list_architectures",
    "open_backbone",
    "quiet_transformers",
    "random_backbone",
    "read_image_preprocess",
]
