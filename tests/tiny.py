"""Tiny random checkpoints of every architecture, as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cleantune.backbones import quiet_transformers

SIZE = 32
_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
_DECODER = {f"decoder_{k}": v for k, v in _VIT.items() if k not in ("image_size", "patch_size")}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", _VIT),
    "vit_mae": ("ViTMAEForPreTraining", {**_VIT, **_DECODER}),
    "vit_msn": ("ViTMSNModel", _VIT),
    "dinov2": ("Dinov2Model", {**_VIT, "mlp_ratio": 2}),
    "clip": ("CLIPVisionModel", _VIT),
    "siglip": ("SiglipVisionModel", _VIT),
    "swin": (
        "SwinModel",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIZE, "patch_size": 4},
    ),
    "convnext": ("ConvNextModel", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "image_size": SIZE}),
    "resnet": (
        "ResNetModel",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "mobilenet_v2": ("MobileNetV2Model", {"depth_multiplier": 0.1, "image_size": SIZE, "finegrained_output": True}),
    "bert": ("BertModel", _TEXT),
    "roberta": ("RobertaModel", {**_TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "mpnet": ("MPNetModel", {**_TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "modernbert": (
        "ModernBertModel",
        {
            **_TEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "classifier_pooling": "cls",
        },
    ),
}
IMAGES = [name for name in CHECKPOINTS if name not in ("bert", "roberta", "mpnet", "modernbert")]
TEXTS = ["bert", "roberta", "mpnet", "modernbert"]
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words: w0 … w30, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(31))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=36,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)


def save_tiny(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint of an architecture, weights shaken so that nothing is zero, with its preprocessing."""
    import json

    with quiet_transformers():
        import transformers

        class_name, settings = CHECKPOINTS[name]
        cls = getattr(transformers, class_name)
        config = cls.config_class(**{**settings, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=generator))
            for key, buffer in model.named_buffers():
                if key.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5, generator=generator)
                if key.endswith("running_mean"):
                    buffer.normal_(0, 0.1, generator=generator)
        model.save_pretrained(folder)
        if name in TEXTS:
            save_tokenizer(folder)
        else:
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
