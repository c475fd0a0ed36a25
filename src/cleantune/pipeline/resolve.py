"""Resolution of a run: its configuration, data, backbone and phases, each resolved once for every entry point."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleantune.backbones import Backbone, open_backbone
from cleantune.backbones.loading import read_architecture, resolve_model_folder
from cleantune.backbones.text import read_sentence_transformers_config
from cleantune.config.run import Config, ModelConfig, config_to_dict, configure, read_config
from cleantune.config.schema import merge
from cleantune.data import Data, corrupt, load
from cleantune.errors import UserError
from cleantune.methods.protocol import Phase
from cleantune.pipeline.arguments import FitArguments
from cleantune.storage.run_dir import RunDir
from cleantune.training.epochs import phases
from cleantune.training.lora import LEARNING_RATE_FACTOR
from cleantune.utils.console import Console


@dataclass(frozen=True)
class ResolvedRun:
    """A run before anything is computed."""

    config: Config
    data: Data
    noise: dict[str, Any] | None
    """Measurements of the injected noise, None where none was asked for."""
    backbone: Backbone | None
    """None where the data are features."""
    phases: tuple[Phase, ...]
    """Phases with all learning rates as numbers."""

    @property
    def trains_backbone(self) -> bool:
        """Return whether a phase trains the backbone."""
        return any(phase.scope == "all" for phase in self.phases)


def configure_arguments(arguments: FitArguments, resume_from: Path | None = None) -> Config:
    """Return the configuration of the arguments.

    Args:
        arguments: Arguments of an entry point.
        resume_from: Folder of an interrupted run, whose settings the arguments must not change.

    Raises:
        UserError: A name, key or value is refused, no data are named, or the interrupted run had other settings.
    """
    table = arguments.to_table()
    if resume_from is not None and (resume_from / RunDir.CONFIG).is_file():
        table = merge_stored(read_config(resume_from / RunDir.CONFIG), table)
    if table.get("data", {}).get("data") is None:
        raise UserError("there are no data: name a folder, a table, embeddings or a Hugging Face dataset")
    return configure_table(table)


def configure_table(table: Mapping[str, Any]) -> Config:
    """Return the configuration of a table; a run without a model is on features.

    Presets depend on the architecture, which is read from the model's config.json.
    """
    model = table.get("model", {}).get("model")
    kind = model_type(model) if "preset" in table.get("method", {}) else None
    return configure(table, kind, features_only=model is None)


def model_type(model: Any) -> str | None:
    """Return the type of a model's architecture, such as "vit"; None where it cannot be read.

    Whatever is wrong with the model is reported when it is opened, after the data.
    """
    if isinstance(model, Backbone):
        return model.architecture.model_type
    if not isinstance(model, str | Path):
        return None
    try:
        root = read_sentence_transformers_config(resolve_model_folder(str(model))).root
        return read_architecture(root).model_type
    except UserError:
        return None


def merge_stored(stored: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Merge a table into the one of an interrupted run.

    Raises:
        UserError: A setting differs; the sentence names the first key.
    """
    if "data" not in table.get("data", {}):
        table = merge({"data": {"data": stored["data"]["data"]}}, table)
    merged = merge(stored, table)
    new, old = config_to_dict(configure_table(merged)), config_to_dict(configure_table(stored))
    for section in new:
        for key, value in new[section].items():
            if value != old[section].get(key):
                raise UserError(
                    f"--resume: {section}.{key} is {value!r} now and was {old[section].get(key)!r};"
                    " resume with the same settings, or start again with --overwrite"
                )
    return merged


def resolve(config: Config, console: Console) -> ResolvedRun:
    """Load the data, open the backbone and lay out the phases of a configuration.

    Raises:
        UserError: Data or model are missing or malformed, or the data do not allow the model selection.
    """
    data, noise = load_data(config, console)
    check_model_selection(config, data)
    backbone = open_model(config.model, data.kind == "features")
    if backbone is not None:
        console.info(
            f"backbone {backbone.source} ({backbone.architecture.model_type}): {backbone.feature},"
            f" {backbone.width} dimensions"
        )
    rate = recommended_learning_rate(backbone, config.model)
    return ResolvedRun(config, data, noise, backbone, phases(config.method, rate))


def check_model_selection(config: Config, data: Data) -> None:
    """Refuse a model selection for which the data have no labels.

    Raises:
        UserError: There is no validation split, or none of its true labels is known.
    """
    rule, truth = config.run.model_selection, data.truth.get("validation")
    if rule != "last" and "validation" not in data.rows:
        raise UserError(f"--model-selection {rule}: there is no validation split; set --validation-fraction 0.1")
    if rule == "clean-val" and (truth is None or not (truth >= 0).any()):
        raise UserError(
            "--model-selection clean-val: no true label of the validation split is known; name their column with"
            " --true-label, or select by noisy-val"
        )


def load_data(config: Config, console: Console) -> tuple[Data, dict[str, Any] | None]:
    """Load the data of a run and inject the noise that the configuration asks for.

    Returns:
        The data, and the measured noise, None where none was injected.

    Raises:
        UserError: Data are missing or malformed.
    """
    data = load(config.data, config.run.cache)
    for note in data.notes:
        console.info(note)
    if config.run.noise is None:
        return data, None
    data, noise = corrupt(data, config.run.noise, config.run.noise_seed)
    if "rate" not in noise:
        return data, None
    console.info(f"noise {noise['noise']}: {noise['rate']:.1%} of the training and validation labels are now wrong")
    return data, noise


def open_model(model: ModelConfig, features_only: bool) -> Backbone | None:
    """Open the backbone of a run; None where the data are features.

    Raises:
        UserError: The model is missing, or given although the data are features.
    """
    if features_only:
        if model.model is not None:
            raise UserError("--model: these data are features already; leave the model out")
        return None
    if model.model is None:
        raise UserError("--model is missing: images and texts need a backbone (a transformers folder or hub id)")
    if isinstance(model.model, Backbone):
        return copy.deepcopy(model.model)
    return open_backbone(model.model, image_size=model.image_size, max_length=model.max_length)


def recommended_learning_rate(backbone: Backbone | None, model: ModelConfig) -> float:
    """Return the learning rate recommended for a backbone or for its adapters, 0 without a backbone."""
    if backbone is None:
        return 0.0
    return backbone.learning_rate * (LEARNING_RATE_FACTOR if model.lora_rank else 1.0)
