"""Opening of a checkpoint folder, a hub id or a module as a backbone; no pickle is read and no remote code is run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from cleantune.backbones.architectures import ALIASES, ARCHITECTURES, Architecture, Pooling, describe_pooling
from cleantune.backbones.backbone import Backbone
from cleantune.backbones.preprocess import (
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
    read_image_preprocess,
    read_json,
)
from cleantune.backbones.text import read_sentence_transformers_config, read_text_preprocess
from cleantune.backbones.transformers_logging import quiet_transformers
from cleantune.errors import UserError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")
_WITH_UNUSED_POOLER = ("ViTModel", "BertModel", "RobertaModel", "MPNetModel")
"""Classes with a pooling layer that our feature does not use and checkpoints often lack."""
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*.fp16.safetensors", "*.bf16.safetensors"]


def open_backbone(
    model: str | Path | nn.Module,
    *,
    kind: Literal["image", "text"] | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
    feature: str | None = None,
    width: int | None = None,
    preprocess: Preprocess | None = None,
) -> Backbone:
    """Open a backbone, in float32 and evaluation mode.

    Args:
        model: Transformers or sentence-transformers folder, hub id, or module that returns features [B, width].
        kind: Modality of the data; a model of the other modality is refused.
        image_size: Side of the square input in pixels, in place of the checkpoint's own.
        max_length: Most tokens of a text, in place of the model's own limit or 128.
        feature: Description of the output of a module.
        width: Dimensions of the output of a module.
        preprocess: Preprocessing for a module; None if its inputs are ready.

    Returns:
        The backbone.

    Raises:
        UserError: There is no such model, it has no weights or only pickled ones, its architecture is unknown, or its
            modality is not that of the data.
    """
    if isinstance(model, nn.Module):
        return _wrap_module(model, kind, feature, width, preprocess)
    settings = read_sentence_transformers_config(resolve_model_folder(str(model)))
    architecture = read_architecture(settings.root)
    _refuse_missing_weights(settings.root)
    _refuse_other_modality(kind, architecture, str(model))
    hf = _load(settings.root, architecture)
    own_preprocess: Preprocess
    if architecture.kind == "image":
        own_preprocess = read_image_preprocess(settings.root, image_size)
        hf = _resize_position_embeddings(hf, architecture, own_preprocess)
    else:
        own_preprocess = read_text_preprocess(hf, settings, max_length)
    pooling = settings.pooling or architecture.pooling
    return Backbone(
        hf,
        architecture,
        width=_width(hf, architecture, pooling),
        preprocess=own_preprocess,
        source=str(model),
        pooling=pooling,
        feature=describe_pooling(pooling) if settings.pooling else None,
    ).eval()


def _refuse_other_modality(kind: str | None, architecture: Architecture, model: str) -> None:
    if kind is not None and architecture.kind != kind:
        raise UserError(
            f"the data are {kind}s, but the model {model} ({architecture.model_type}) takes {architecture.kind}s: "
            f"choose a model for {kind}s"
        )


def _wrap_module(
    module: nn.Module, kind: Literal["image", "text"] | None, feature: str | None, width: int | None, preprocess: Any
) -> Backbone:
    if feature is None or width is None:
        raise UserError(
            "a model given as a module needs feature= (what it returns, in words) and width= (the length of it)"
        )
    modality: Literal["image", "text"] = kind or ("text" if isinstance(preprocess, TextPreprocess) else "image")
    has_batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    name = type(module).__name__
    architecture = Architecture(name, modality, feature, None, 1e-4, has_batchnorm, name, Pooling(()))
    return Backbone(module, architecture, width=width, preprocess=preprocess, source=name, feature=feature).eval()


def resolve_model_folder(model: str) -> Path:
    """Return the folder of a model; of a hub id, safetensors and text files are downloaded.

    Raises:
        UserError: There is no such folder, and the hub has no such model or cannot be reached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"the model {model} is a file, not a folder: give the folder with its config.json")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or "\\" in model or not model:
        raise UserError(f'no such model: there is no folder "{model}"; give a transformers folder or a hub id')
    with quiet_transformers():
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED))
        except Exception as error:  # offline, unknown and gated models raise different classes
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f'no such model: "{model}" is neither a folder here nor reachable on the Hugging Face hub ({reason[0]})'
            ) from error


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture that a folder's config.json names.

    Raises:
        UserError: There is no such file, or the architecture is unknown.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json; give a transformers folder")
    model_type = str(read_json(folder / "config.json").get("model_type", ""))
    name = ALIASES.get(model_type, model_type)
    if name not in ARCHITECTURES:
        raise UserError(
            f'the model {folder} has the architecture "{model_type}", but supported are {", ".join(ARCHITECTURES)}; '
            "from Python, any torch.nn.Module works: open_backbone(module, feature=..., width=...)"
        )
    return ARCHITECTURES[name]


def _refuse_missing_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
        if pickled:
            raise UserError(
                f"the model {folder} has only pickled weights ({pickled[0]}), and those can run code when opened: "
                "convert them to safetensors (save_pretrained writes them) and give that folder"
            )
        raise UserError(
            f"the model {folder} has a config.json but no weights: model.safetensors is missing; fetch it, or convert "
            "the weights to safetensors (save_pretrained writes them)"
        )


def _load(folder: Path, architecture: Architecture) -> nn.Module:
    with quiet_transformers():
        import transformers

        model_class = getattr(transformers, architecture.model_class)
        try:
            hf, info = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **_options(folder, architecture),
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the weights of the model {folder} cannot be opened ({reason}): fetch it again") from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise UserError(f"the weights of the model {folder} are damaged ({error}): fetch it again") from error
    _refuse_misfit(folder, info)
    return cast(nn.Module, hf.eval())


def _options(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Return arguments of `from_pretrained` other than the folder."""
    import transformers

    options: dict[str, Any] = {}
    if architecture.model_class in _WITH_UNUSED_POOLER:
        options["add_pooling_layer"] = False
    if architecture.model_type == "vit_mae":
        # ViTMAEModel masks three patches of four in every forward pass, also in evaluation; the plain ViT does not.
        config = transformers.ViTMAEConfig.from_pretrained(folder).to_dict()
        shared = set(transformers.ViTConfig().to_dict()) & set(config) - {"model_type", "architectures"}
        options["config"] = transformers.ViTConfig(**{key: config[key] for key in sorted(shared)})
    return options


def _refuse_misfit(folder: Path, info: Any) -> None:
    """Refuse a checkpoint that leaves weights of the backbone random; an unused head is allowed."""
    missing = sorted(k for k in info["missing_keys"] if not k.endswith(("num_batches_tracked", "position_ids")))
    wrong = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in info["mismatched_keys"])
    if missing or wrong:
        what = f"lack {missing[0]}" if missing else f"have another shape in {wrong[0]}"
        count = len(missing) + len(wrong)
        raise UserError(f"the weights of the model {folder} {what} ({count} in all): they do not fit its config.json")


def _resize_position_embeddings(hf: nn.Module, architecture: Architecture, preprocess: ImagePreprocess) -> nn.Module:
    """Return the network for the size of the preprocessing; learned position embeddings are interpolated once."""
    if not architecture.has_position_embeddings:
        return hf
    config: Any = hf.config
    height, width = preprocess.size
    if _pair(config.image_size) == (height, width):
        return hf
    patch = _pair(config.patch_size)
    if height % patch[0] or width % patch[1] or height != width:
        raise UserError(
            f"an image of {height} x {width} pixels is no whole number of the {patch[0]}-pixel patches of this model: "
            f"use --image-size {max(1, round(height / patch[0])) * patch[0]}"
        )
    embeddings: Any = getattr(hf, "vision_model", hf).embeddings
    key = "position_embedding" if hasattr(embeddings, "position_embedding") else "position_embeddings"
    learned = key == "position_embedding"
    old = embeddings.position_embedding.weight if learned else embeddings.position_embeddings
    extra = old.shape[-2] - (_pair(config.image_size)[0] // patch[0]) * (_pair(config.image_size)[1] // patch[1])
    tokens = (height // patch[0]) * (width // patch[1]) + extra
    with torch.no_grad(), quiet_transformers():
        new = embeddings.interpolate_pos_encoding(old.new_zeros(1, tokens, old.shape[-1]), height, width)
        resized_config = copy.deepcopy(config)
        resized_config.image_size = height
        options = {"add_pooling_layer": False} if architecture.model_class in _WITH_UNUSED_POOLER else {}
        resized = type(hf)(resized_config, **options)
    state = hf.state_dict()
    name = next(k for k in state if k.endswith(f"{key}.weight" if learned else key))
    state[name] = new[0] if learned else new
    state = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    resized.load_state_dict(state, strict=False)
    return resized.eval()


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _width(hf: nn.Module, architecture: Architecture, pooling: Pooling) -> int:
    config: Any = hf.config
    if architecture.model_type == "mobilenet_v2":
        return int(hf.conv_1x1.convolution.out_channels)  # type: ignore[union-attr,arg-type]
    if architecture.model_type == "swin":
        return int(hf.num_features)  # type: ignore[arg-type]
    if architecture.model_type in ("convnext", "resnet"):
        return int(config.hidden_sizes[-1])
    return int(config.hidden_size) * len(pooling.modes)
