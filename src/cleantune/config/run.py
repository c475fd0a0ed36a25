"""Configuration of a run, read from TOML and the command line and written so that the run can be repeated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from cleantune.config.augmentation import ImageAugmentation, TextAugmentation
from cleantune.config.data import DataConfig
from cleantune.config.schema import from_dict, merge, to_dict
from cleantune.errors import UserError, did_you_mean, refuse_unknown_keys
from cleantune.methods import METHODS
from cleantune.methods.protocol import Method, ModelSelection, Range

HISTORY_TABLES = ("record",)
"""Tables of a run's config.toml that describe the past run and are not read back."""


@dataclass(frozen=True)
class ModelConfig:
    """Pre-trained model and its inputs."""

    model: Any = None
    """Checkpoint folder or hub id of transformers; in Python also a torch module. Not needed for embeddings."""
    image_size: Annotated[int | None, Range(8, 4096)] = None
    """Side of the images in pixels. Default: as the checkpoint states."""
    max_length: Annotated[int | None, Range(4, 8192)] = None
    """Maximum number of tokens of a text. Default: the model's maximum, at most 128."""
    head_init: Literal["zeros", "normal"] = "zeros"
    """Initial weights of a head: zeros, or N(0, 0.02^2) as in the paper and for two heads on the same features."""
    lora_rank: Annotated[int, Range(0, 1024)] = 0
    """Rank of LoRA adapters, which are trained instead of the backbone's weights; 0: none. --scope lora sets 8."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the backbone; auto takes bfloat16 if the processor or GPU has native support."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """Inference backend for a frozen backbone; auto takes OpenVINO for many samples on a CPU, if installed."""
    compile: bool = False
    """Compile the backbone for fine-tuning by torch.compile: worthwhile for long training on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class RunConfig:
    """Label noise, model selection, seeds, processes and cache of a run."""

    noise: str | None = None
    """Noise injected into the labels of training and validation, such as symmetric:0.6. Default: none."""
    model_selection: ModelSelection = "last"
    """Epoch of the final model: the last, or the best on the validation split by given or by true labels."""
    fallback_to_probe: bool = True
    """Select the probe if fine-tuning is clearly worse on the noisy validation split."""
    cached_augmentations: Annotated[int, Range(1, 64)] = 4
    """Cached augmented views per sample and kind, which DivideMix and UNICON mix in scope head; 1: no augmentation."""
    test_every_epoch: bool = False
    """Evaluate the test split after every epoch of fine-tuning, not only when validation improves and at the end."""
    noise_seed: int = 0
    """Seed of the injected noise."""
    train_seed: int = 0
    """Seed of initial weights, sample order, augmentation and selection."""
    max_unreadable: Annotated[float, Range(0.0, 1.0)] = 0.01
    """Largest fraction of unreadable samples; these are skipped."""
    workers: Annotated[int, Range(1, 100_000)] = 1
    """Number of processes, started by Ray on this machine or on the cluster at RAY_ADDRESS."""
    sharding: Literal["none", "fsdp"] = "none"
    """Sharding of a fine-tuned backbone among several processes, for models that do not fit on one device."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Number format of cached features; float16 halves the disk space and is not used if it would change features."""
    cache: str | None = None
    """Folder of decoded images and features. Default: $CLEANTUNE_CACHE, else ~/.cache/cleantune."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Strength of the augmentations."""

    image: ImageAugmentation = ImageAugmentation()
    """Augmentation of images."""
    text: TextAugmentation = TextAugmentation()
    """Augmentation of texts."""


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    name: str
    """Name of the method."""
    preset: str | None
    """Name of the method's preset."""
    method: Method
    data: DataConfig
    model: ModelConfig
    run: RunConfig
    augmentation: AugmentationConfig


def configure(table: Mapping[str, Any], backbone: str | None = None, features_only: bool = False) -> Config:
    """Build the configuration from a table with the sub-tables data, model, method, run and augmentation.

    Args:
        table: Values; `method.name` and `method.preset` choose the method and its preset.
        backbone: Architecture of the backbone, such as "vit", which presets depend on; None if it is not known yet.
        features_only: Whether the data are features without a backbone, for which the default scope is `head`.

    Raises:
        UserError: A name or key is unknown, or a value is out of range; the message names it.
    """
    refuse_unknown_keys(table, ("data", "model", "method", "run", "augmentation"))
    settings = dict(table.get("method", {}))
    name, preset = settings.pop("name", "robust"), settings.pop("preset", None)
    return Config(
        name,
        preset,
        build_method(name, preset, settings, backbone, features_only),
        from_dict(DataConfig, table.get("data", {}), "data"),
        from_dict(ModelConfig, table.get("model", {}), "model"),
        from_dict(RunConfig, table.get("run", {}), "run"),
        from_dict(AugmentationConfig, table.get("augmentation", {}), "augmentation"),
    )


def build_method(
    name: str, preset: str | None, settings: Mapping[str, Any], backbone: str | None, features_only: bool
) -> Method:
    """Build a method from its defaults, its preset and the given settings; the later win.

    Args:
        name: Name of the method.
        preset: Name of the preset; None for the defaults.
        settings: Values by field name.
        backbone: Architecture of the backbone; None if it is not known.
        features_only: Whether the default scope is `head`.

    Raises:
        UserError: Method, preset or key is unknown, or a value is out of range.
    """
    if name not in METHODS:
        raise UserError(f'unknown method "{name}"{did_you_mean(name, METHODS)}')
    cls = METHODS[name]
    base = cls()
    if preset is not None:
        if not cls.presets:
            raise UserError(f'method {name} has no presets; leave "{preset}" out')
        if preset not in cls.presets:
            raise UserError(f'method {name} has no preset "{preset}"{did_you_mean(preset, cls.presets)}')
        base = cls.presets[preset](backbone or "")
    if features_only and "scope" not in settings:
        settings = merge(settings, {"scope": "head"})
    return from_dict(cls, settings, "method", base)


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file as a table, without its `HISTORY_TABLES`.

    Raises:
        UserError: The file is missing or not TOML; the message has the line.
    """
    return {key: value for key, value in load_toml(path).items() if key not in HISTORY_TABLES}


def load_toml(path: Path | Traversable, missing: str | None = None) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: File.
        missing: Error message for a missing file; None for a message about a configuration file.

    Raises:
        UserError: The file is missing or not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(missing or f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def config_to_dict(config: Config) -> dict[str, Any]:
    """Convert a configuration to a table that `configure` reads back; paths become absolute."""
    data = {key: _to_toml(value) for key, value in to_dict(config.data).items()}
    model = {key: _to_toml(value) if key == "model" else value for key, value in to_dict(config.model).items()}
    method = {"name": config.name} | ({"preset": config.preset} if config.preset else {}) | to_dict(config.method)
    run, augmentation = to_dict(config.run), to_dict(config.augmentation)
    return {"data": data, "model": model, "method": method, "run": run, "augmentation": augmentation}


def _to_toml(value: Any) -> Any:
    """Make paths absolute and replace Python objects that TOML cannot represent by the name of their type."""
    if isinstance(value, str | Path):
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else str(value)
    scalars = (bool, int, float, str)
    if isinstance(value, scalars) or (isinstance(value, list) and all(isinstance(v, scalars) for v in value)):
        return value
    return f"<{type(value).__module__}.{type(value).__qualname__} from Python>"
