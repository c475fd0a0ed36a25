"""Models on disk: the native form of transformers where it computes the same function, otherwise our own form."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cleantune.backbones import Backbone, TextPreprocess, open_backbone, quiet_transformers
from cleantune.errors import UserError
from cleantune.training.heads import HEADS, LinearHead, head_from_config, head_to_config, unwrap_head
from cleantune.training.models import Model

MODEL_FILE = "cleantune.json"
_FORMAT = 1

ModelFormat = Literal["native", "folder", "module", "head", "ensemble"]
"""A classifier of transformers; a backbone folder and a head; weights of a user's module and a head; a head alone;
several models, each in a folder of its own, whose probabilities are averaged."""
MEMBER_PREFIX = "net-"
"""Prefix of the folders of an ensemble: net-0, net-1, …; each of them is a complete model."""


def save_models(
    folder: Path, nets: Sequence[Model], *, classes: Sequence[str], class_values: Sequence[Any]
) -> ModelFormat:
    """Write one model as `save_model` does, or several as an ensemble; the folder appears complete or not at all.

    Args:
        folder: Folder to create.
        nets: Models on any device; an ensemble predicts the mean of their probabilities.
        classes: Names of the classes, in the order of the scores.
        class_values: Labels as the data write them, in the same order; JSON values.

    Returns:
        The format that was chosen.
    """
    if len(nets) == 1:
        return save_model(folder, nets[0], classes=classes, class_values=class_values)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.all")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for k, net in enumerate(nets):
            save_model(draft / f"{MEMBER_PREFIX}{k}", net, classes=classes, class_values=class_values)
        note = {"format": _FORMAT, "form": "ensemble", "nets": len(nets)}
        note |= {"classes": list(classes), "class_values": list(class_values), "extra": {}}
        (draft / MODEL_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return "ensemble"


def load_models(folder: Path, *, backbone: Backbone | None = None) -> tuple[list[Model], dict[str, Any]]:
    """Load the members of a saved model and its description; only an ensemble has several members.

    Raises:
        UserError: As in `load_model`.
    """
    note = _read_note(folder)
    if note["form"] != "ensemble":
        net, note = load_model(folder, backbone=backbone)
        return [net], note
    members = range(note["nets"])
    return [load_model(folder / f"{MEMBER_PREFIX}{k}", backbone=copy.deepcopy(backbone))[0] for k in members], note


def _read_note(folder: Path) -> dict[str, Any]:
    """Read the description of a model.

    Raises:
        UserError: There is no model, or its format is newer.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(
            f"there is no model in {folder}: {MODEL_FILE} is missing; give a run's folder or its model folder"
        )
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if note.get("format") != _FORMAT:
        raise UserError(f"{path} is of format {note.get('format')}, but this cleantune reads {_FORMAT}: update it")
    return note


def save_model(
    folder: Path,
    net: Model,
    *,
    classes: Sequence[str],
    class_values: Sequence[Any],
    extra: Mapping[str, Any] | None = None,
) -> ModelFormat:
    """Write a model so that `load_model` opens it, and `transformers.pipeline` too where possible.

    A linear head on an architecture with a native classifier is written as that classifier, with the
    standardization folded into its weights. The folder appears complete or not at all, and replaces an older one.

    Args:
        folder: Folder to create.
        net: Model on any device.
        classes: Names of the classes, in the order of the scores.
        class_values: Labels as the data write them, in the same order; JSON values.
        extra: Further values that belong to the model; JSON values.

    Returns:
        The format that was chosen.
    """
    net = _without_projection(net)
    form = _form(net)
    note = _note(net, form) | {
        "classes": list(classes),
        "class_values": list(class_values),
        "extra": dict(extra or {}),
    }
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with quiet_transformers():
            _write(draft, net, form, classes)
        (draft / MODEL_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return form


def _without_projection(net: Model) -> Model:
    """Return the model without the projection head, which only training needs."""
    if unwrap_head(net.head) is net.head:
        return net
    stripped = copy.copy(net)
    stripped._modules = {**net._modules, "head": unwrap_head(net.head)}
    return stripped


def _note(net: Model, form: ModelFormat) -> dict[str, Any]:
    """Return the description that `load_model` needs."""
    note: dict[str, Any] = {"format": _FORMAT, "form": form, "head": head_to_config(net.head)}
    backbone = net.backbone
    if backbone is not None:
        note["backbone"] = {"architecture": backbone.architecture.model_type, "feature": backbone.feature}
        if isinstance(backbone.preprocess, TextPreprocess):
            note["backbone"]["max_length"] = backbone.preprocess.max_length
    return note


def _form(net: Model) -> ModelFormat:
    if net.backbone is None:
        return "head"
    if net.backbone.pooling is None:
        return "module"
    architecture = net.backbone.architecture
    is_native = net.backbone.pooling == architecture.pooling and architecture.native_class is not None
    return "native" if is_native and type(net.head) is LinearHead else "folder"


def _write(folder: Path, net: Model, form: ModelFormat, classes: Sequence[str]) -> None:
    if form == "native":
        assert net.backbone is not None
        native_classifier(net, classes).save_pretrained(folder)  # type: ignore[operator]
        net.backbone.save_preprocess(folder)
        return
    save_file(_contiguous(net.head.state_dict()), folder / "head.safetensors")
    if form == "folder":
        assert net.backbone is not None
        net.backbone.save(folder / "backbone")
    elif form == "module":
        assert net.backbone is not None
        save_file(_contiguous(net.backbone.state_dict()), folder / "backbone.safetensors")


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _swap(draft: Path, folder: Path) -> None:
    """Replace the folder by the draft; an older model is removed only after that."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    draft.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def native_classifier(net: Model, classes: Sequence[str]) -> nn.Module:
    """Return the classifier of transformers that computes the scores of a model with a linear head.

    Args:
        net: Model whose architecture names a native class.
        classes: Names of the classes, which become `id2label`.
    """
    import transformers

    assert net.backbone is not None
    assert net.backbone.architecture.native_class is not None
    assert isinstance(net.head, LinearHead)
    config: Any = copy.deepcopy(net.backbone.hf.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    if config.model_type == "modernbert":  # its head becomes the layer norm without parameters that our feature has
        config.classifier_pooling, config.classifier_activation = "mean", "linear"
    native: Any = getattr(transformers, net.backbone.architecture.native_class)(config)
    getattr(native, native.base_model_prefix).load_state_dict(net.backbone.hf.state_dict())
    classifier = native.classifier if isinstance(native.classifier, nn.Linear) else native.classifier[-1]
    weight, bias = net.head.raw_weights()
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
        if config.model_type == "modernbert":
            native.head.dense.weight.copy_(torch.eye(config.hidden_size))
            native.head.norm.weight.fill_(1)
            for part in (native.head.dense, native.head.norm):
                if part.bias is not None:
                    part.bias.zero_()
    built: nn.Module = native.eval()
    return built


def load_model(folder: Path, *, backbone: Backbone | None = None) -> tuple[Model, dict[str, Any]]:
    """Load a saved model and its description: `classes`, `class_values`, `extra`.

    Args:
        folder: Folder that `save_model` wrote.
        backbone: The user's module, where the model was trained on one; its weights are read from the folder.

    Raises:
        UserError: There is no model, its format is newer, or the module is missing.
    """
    path, note = folder / MODEL_FILE, _read_note(folder)
    form: ModelFormat = note["form"]
    if form == "ensemble":
        raise UserError(
            f"{folder} has {note['nets']} models: open one of {folder}/{MEMBER_PREFIX}*, or all with cleantune.load"
        )
    max_length = note.get("backbone", {}).get("max_length")
    if form == "native":
        opened = open_backbone(folder, max_length=max_length)
        return Model(opened, _native_head(folder, opened.width)).eval(), note
    if note["head"]["kind"] not in HEADS:
        raise UserError(f"{path} names the head {note['head']['kind']}, which this cleantune does not have: update it")
    head = head_from_config(note["head"])
    head.load_state_dict(load_file(folder / "head.safetensors"))
    if form == "folder":
        return Model(open_backbone(folder / "backbone", max_length=max_length), head).eval(), note
    if form == "head":
        return Model(None, head).eval(), note
    if backbone is None:
        raise UserError(
            f"the model in {folder} was trained on a module from Python ({note['backbone']['feature']}): "
            "open that with open_backbone and pass it as backbone= to cleantune.pipeline.export.load_models"
        )
    backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
    return Model(backbone, head).eval(), note


def _native_head(folder: Path, width: int) -> LinearHead:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # the handle is no mapping
                if name.startswith("classifier."):
                    tensors[name.rsplit(".", 1)[-1]] = file.get_tensor(name)
    head = LinearHead(width, len(tensors["bias"]), init="zeros")
    head.linear.load_state_dict(tensors)
    return head
