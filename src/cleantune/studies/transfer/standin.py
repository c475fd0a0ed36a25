"""A transfer study rehearsed: tiny random networks and made-up data in the place of every model and data set.

It shows that a study runs from its file to its tables on any machine. Its numbers mean nothing.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cleantune.config.schema import to_dict
from cleantune.errors import UserError, did_you_mean
from cleantune.methods.nmtune import TEXT_BACKBONES
from cleantune.studies.transfer.study import Study, Target, Task
from cleantune.studies.turn_paper.standin import CLASSES, IMAGES, NETWORKS, images, network

OTHER = "elsewhere"
"""Domain of the stand-in beside the source."""
_WORDS = 31


def synthetic(study: Study, folder: Path) -> Study:
    """The same models, tasks and tunings by name, with everything that would be fetched made up.

    Args:
        study: Its seeds and fractions stay.
        folder: Where networks and data are put.
    """
    models = []
    for k, model in enumerate(study.models):
        place = folder / "models" / str(k)
        if model.model != "none" and not (place / "config.json").is_file():
            if model.architecture not in (*NETWORKS, *TEXT_BACKBONES):
                known = did_you_mean(model.architecture, (*NETWORKS, *TEXT_BACKBONES))
                raise UserError(f'there is no stand-in for the architecture "{model.architecture}"{known}')
            (network if model.architecture in NETWORKS else text_network)(model.architecture, place, k)
        made = "none" if model.model == "none" else str(place)
        models.append(replace(model, model=made, image_size=0))
    tasks = tuple(_task(task, folder / "data") for task in study.tasks)
    note = "Stand-in: made-up data and tiny random networks; the numbers mean nothing."
    return replace(study, models=tuple(models), tasks=tasks, note=note)


def _task(task: Task, folder: Path) -> Task:
    """A task on made-up rows; columns have the plain names."""
    domains = [task.source, OTHER] if task.source else []
    path = _table(folder, task.kind, task.regression, domains)
    parts = {"test_fraction": 0.25} if task.judged == "test" else {"validation_fraction": 0.25}
    data: dict[str, Any] = {"data": str(path)} | ({} if task.source else parts)
    targets = tuple(_target(target, task, folder) for target in task.targets)
    column = "domain" if task.source else None
    return replace(task, data=data, domain_column=column, join=(), target=targets)


def _target(target: Target, task: Task, folder: Path) -> dict[str, Any]:
    path = _table(folder, task.kind, task.regression, ["here", "there"])
    made = Target(target.name, str(path), domain_column="domain" if target.domain_column else None)
    return to_dict(replace(made, subset=target.subset))


def _table(folder: Path, kind: str, regression: bool, domains: list[str]) -> Path:
    """Rows of a kind with labels and, where asked for, domains."""
    name = "-".join([kind, "numbers" if regression else "classes", *domains]).replace(" ", "_").replace("/", "_")
    path = folder / (f"{name}.npz" if kind == "features" else f"{name}.parquet")
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pixels, y = images()
    rng = np.random.default_rng(1)
    labels = [str(c / 2) if regression else f"class {c}" for c in y]
    if kind == "features":
        x = rng.normal(size=(IMAGES, 16)).astype(np.float32) + 2 * np.eye(CLASSES, 16, dtype=np.float32)[y]
        np.savez(path, features=x, label=np.array(labels))
        return path
    columns: dict[str, Any] = {"label": labels}
    if domains:
        columns["domain"] = [domains[int(k)] for k in rng.integers(0, len(domains), IMAGES)]
    if kind == "text":
        columns["text"] = [" ".join(f"w{(c * 6 + k) % _WORDS}" for k in rng.integers(0, 6, 4)) for c in y]
    else:
        columns["image"] = [{"bytes": _png(x), "path": None} for x in pixels]
    pq.write_table(pa.table(columns), path)
    return path


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def text_network(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of a tiny random BERT with a tokenizer of whole words, whatever encoder it stands in for."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from cleantune.backbones import quiet_transformers

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(_WORDS))])}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=40,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, model_max_length=36, model_input_names=["input_ids", "attention_mask"],
            **{f"{n}_token": s for n, s in zip(("pad", "cls", "sep", "unk", "mask"), special, strict=True)},
        ).save_pretrained(folder)  # fmt: skip
    return folder
