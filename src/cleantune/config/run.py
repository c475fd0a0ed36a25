"""The configuration of a run: four records, read from TOML and the command line, written so that it repeats the run."""

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


@dataclass(frozen=True)
class ModelConfig:
    """Which pre-trained model, and how samples are put before it."""

    model: Any = None
    """Checkpoint folder or hub id of transformers; in Python also a torch module. Not needed for embeddings."""
    image_size: Annotated[int | None, Range(8, 4096)] = None
    """Side of the images in pixels; left out: the checkpoint's own."""
    max_length: Annotated[int | None, Range(4, 8192)] = None
    """Tokens of a text at the most; left out: the model's own, at most 128."""
    head_init: Literal["zeros", "normal"] = "zeros"
    """Initial weights of a head: zeros, or N(0, 0.02^2) as in the paper and for two heads on the same features."""
    lora_rank: Annotated[int, Range(0, 1024)] = 0
    """Rank of the LoRA adapters that learn in the place of the backbone's weights; 0: none. --scope lora sets 8."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the backbone; auto takes bfloat16 where the processor or GPU computes natively in it."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """Program for features of a frozen backbone; auto takes OpenVINO for many samples on a CPU, if installed."""
    compile: bool = False
    """Compile the backbone for fine-tuning by torch.compile: worthwhile for long training on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the nets compute; auto takes a GPU where there is one."""


@dataclass(frozen=True)
class RunConfig:
    """What is done beside training: noise that is injected, how the model is chosen, seeds, cache."""

    noise: str | None = None
    """Noise put into the training labels before anything sees them, such as symmetric:0.6; left out: none."""
    model_selection: ModelSelection = "last"
    """Which epoch's model is delivered: the last, or the best on the validation split by given or by true labels."""
    fallback_to_probe: bool = True
    """Deliver the probe where fine-tuning ends clearly below it on the noisy validation split."""
    cached_augmentations: Annotated[int, Range(1, 64)] = 4
    """Cached views of each training sample and kind, which DivideMix and UNICON mix in scope head; 1: plain ones."""
    test_every_epoch: bool = False
    """Look at the test split after every epoch of fine-tuning, not only where validation improves and at the end."""
    noise_seed: int = 0
    """Seed of the injected noise."""
    train_seed: int = 0
    """Seed of initial weights, order, views and selection."""
    max_unreadable: Annotated[float, Range(0.0, 1.0)] = 0.01
    """Share of unreadable samples up to which the run goes on without them."""
    workers: Annotated[int, Range(1, 100_000)] = 1
    """Processes that share the run, started by Ray: on this machine, or where RAY_ADDRESS says."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several processes: fsdp divides a backbone that learns among them, for those that do not fit whole."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Format of cached features; float16 takes half the disk, and is not used where it would change the features."""
    cache: str | None = None
    """Folder of decoded images and features; left out: $CLEANTUNE_CACHE, else ~/.cache/cleantune."""


@dataclass(frozen=True)
class AugmentationConfig:
    """How far augmented views stray from a sample."""

    image: ImageAugmentation = ImageAugmentation()
    """Of images."""
    text: TextAugmentation = TextAugmentation()
    """Of texts."""


@dataclass(frozen=True)
class Config:
    """All that a run depends on."""

    name: str
    preset: str | None
    method: Method
    data: DataConfig
    model: ModelConfig
    run: RunConfig
    augmentation: AugmentationConfig


def configure(table: Mapping[str, Any], backbone: str | None = None, features_only: bool = False) -> Config:
    """The configuration from a table with the sub-tables data, model, method and run.

    Args:
        table: Values; `method.name` and `method.preset` pick the method and its named settings.
        backbone: Type of the backbone ("vit"), which presets depend on; None before it is known.
        features_only: The data are features without a backbone: scope `all` becomes `head` unless asked for.

    Raises:
        UserError: A name or key is unknown or a value leaves its range; the sentence names it.
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
    """The method of a name with its preset's settings, then the given ones."""
    if name not in METHODS:
        raise UserError(f'unknown method "{name}"{did_you_mean(name, METHODS)}')
    cls = METHODS[name]
    start = cls()
    if preset is not None:
        if not cls.presets:
            raise UserError(f'method {name} has no presets; leave "{preset}" out')
        if preset not in cls.presets:
            raise UserError(f'method {name} has no preset "{preset}"{did_you_mean(preset, cls.presets)}')
        start = cls.presets[preset](backbone or "")
    if features_only and "scope" not in settings:
        settings = merge(settings, {"scope": "head"})
    return from_dict(cls, settings, "method", start)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file as a table, without what it says of the past.

    Raises:
        UserError: It is missing or not TOML; the sentence has the line.
    """
    return {key: value for key, value in load_toml(path).items() if key not in HISTORY_TABLES}


def load_toml(path: Path | Traversable, missing: str | None = None) -> dict[str, Any]:
    """All that a TOML file holds.

    Args:
        path: The file.
        missing: The sentence where there is none; left out: that there is no such configuration file.

    Raises:
        UserError: It is missing or not TOML; the sentence has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(missing or f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


HISTORY_TABLES = ("record",)
"""Tables of a run's config.toml that say what was, and are not read back."""


def config_to_dict(config: Config) -> dict[str, Any]:
    """The table that `configure` reads back; paths are absolute, data given as Python objects are named as such."""
    data = {key: _path(value) for key, value in to_dict(config.data).items()}
    model = {key: _path(value) if key == "model" else value for key, value in to_dict(config.model).items()}
    method = {"name": config.name} | ({"preset": config.preset} if config.preset else {}) | to_dict(config.method)
    run, augmentation = to_dict(config.run), to_dict(config.augmentation)
    return {"data": data, "model": model, "method": method, "run": run, "augmentation": augmentation}


def _path(value: Any) -> Any:
    """A path that holds wherever the file is read from; other Python objects by their type."""
    if isinstance(value, str | Path):
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else str(value)
    plain = (bool, int, float, str)
    if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(v, plain) for v in value)):
        return value
    return f"<{type(value).__module__}.{type(value).__qualname__} from Python>"
