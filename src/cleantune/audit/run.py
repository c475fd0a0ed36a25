"""An audit from its input to its last file: of arrays, or of data under a frozen backbone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from cleantune.audit import Audit
from cleantune.audit.score_labels import Verdict, score_features, score_probabilities
from cleantune.audit.tables import LabelTable, build_audit, write
from cleantune.audit.validation import validate_annotators, validate_features, validate_labels, validate_probabilities
from cleantune.config.run import config_to_dict
from cleantune.data import Data
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.errors import UserError
from cleantune.label_quality.noise_model import Source
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.export import save_models
from cleantune.pipeline.inputs import RunInputs, fingerprint, prepare_inputs
from cleantune.pipeline.label_table import LABELED_SPLITS
from cleantune.pipeline.record import versions
from cleantune.pipeline.resolve import configure_table, resolve
from cleantune.storage.files import write_text
from cleantune.storage.run_dir import RunDir
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.utils.console import Console

DEFAULTS = {"data": {"validation_fraction": 0.0, "test_fraction": 0.0}, "method": {"name": "gce", "scope": "head"}}
"""What an audit needs otherwise than a training: nothing is set aside."""


def build_config_table(data: Any, model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The table of a run from what was said."""
    seed = options.pop("seed", None)
    return FitArguments(data=data, model=model, seed=seed, config=DEFAULTS, options=options).to_table()


def audit_arrays(
    features: Any,
    pred_probs: Any,
    labels: Any,
    annotators: np.ndarray | None,
    source: Source,
    beta: float,
    out: str | Path | None,
    overwrite: bool,
    quiet: bool,
    came: dict[str, str] | None = None,
) -> Audit:
    """The audit of features or probabilities with their labels."""
    start, console = time.perf_counter(), Console(quiet)
    if pred_probs is not None:
        p = validate_probabilities(pred_probs, "pred_probs")
        y, names, values = validate_labels(labels, len(p), p.shape[1])
        others = validate_annotators(annotators, values, len(y))
        said = score_probabilities(p, torch.from_numpy(y), source, beta=beta, annotators=others)
    else:
        x = validate_features(features, "features")
        y, names, values = validate_labels(labels, len(x), None)
        others = validate_annotators(annotators, values, len(y))
        with console.progress("neighbors") as told:
            said = score_features(x, torch.from_numpy(y), len(names), beta=beta, annotators=others, progress=told)
    rows = LabelTable(np.arange(len(y)), np.full(len(y), "train", dtype=object), y, None, names, values)
    found = build_audit(
        said, rows, "probabilities" if pred_probs is not None else "features", time.perf_counter() - start
    )
    if out is None:
        return found
    folder = RunDir(Path(out), overwrite=overwrite, kind="audit")
    folder.clear()
    write_text(
        folder.path / "config.toml",
        tomli_w.dumps({"record": {"audit": "arrays", "versions": versions()} | (came or {})}),
    )
    return write(found, said, rows, folder.path, console, None)


@dataclass(frozen=True)
class _Read:
    """Labels of train and validation, one after the other."""

    rows: LabelTable
    splits: list[str]


def audit_data(
    table: dict[str, Any], out: Path, annotators: list[str], source: Source, beta: float, overwrite: bool, quiet: bool
) -> Audit:
    """The audit of data: frozen features, or probabilities in a file."""
    start, console = time.perf_counter(), Console(quiet)
    data_path = table["data"]["data"]
    if isinstance(data_path, str | Path) and Path(data_path).suffix == ".npz" and Path(data_path).is_file():
        with np.load(data_path, allow_pickle=False) as file:
            held = file.files
            if "pred_probs" in held:
                given = next((n for n in (table["data"].get("label"), "label", "labels", "given") if n in held), None)
                if given is None:
                    raise UserError(
                        f"{data_path} has no array of labels; known: {', '.join(held)}; name it with --label"
                    )
                p, labels = file["pred_probs"], file[given]
                came = {"source": str(Path(data_path).resolve()), "label": given}
                return audit_arrays(None, p, labels, None, source, beta, out, overwrite, quiet, came)
    run = resolve(configure_table(table), console)
    config, data = run.config, run.data
    named = _columns(config.data, data, annotators)
    folder = RunDir(out, overwrite=overwrite, kind="audit")
    material = prepare_inputs(config, data, run.backbone, console)
    read = read_labels_of_splits(material.data)
    x = np.concatenate([np.asarray(material.features[s], np.float32) for s in read.splits])
    keys = list(zip(read.rows.split, read.rows.ids.tolist(), strict=True))
    others = np.array([[known.get(key, -1) for key in keys] for known in named]) if named else None
    y = torch.from_numpy(read.rows.y)
    with console.progress("neighbors") as told:
        said = score_features(x, y, len(data.classes), beta=beta, annotators=others, progress=told)
    record = {
        "audit": "data",
        "fingerprint": fingerprint(material),
        "data_fingerprint": data.fingerprint,
        "versions": versions(),
    }
    folder.clear()
    write_text(folder.path / "config.toml", tomli_w.dumps(config_to_dict(config) | {"record": record}))
    found = build_audit(said, read.rows, data.kind, time.perf_counter() - start, leaks=_leaks(material, x, said, read))
    save_models(folder.path / "model", [_net(said, material)], classes=data.classes, class_values=data.class_values)
    return write(found, said, read.rows, folder.path, console, material.data)


def read_labels_of_splits(data: Data) -> _Read:
    """The labels that an audit judges."""
    splits = [s for s in LABELED_SPLITS if s in data.rows]
    truth = None
    if any(s in data.truth for s in splits):
        truth = np.concatenate([data.truth.get(s, np.full(len(data.rows[s]), -1)) for s in splits])
    rows = LabelTable(
        np.concatenate([data.rows[s].ids for s in splits]),
        np.concatenate([np.full(len(data.rows[s]), s, dtype=object) for s in splits]),
        np.concatenate([data.rows[s].y for s in splits]).astype(np.int64),
        truth,
        data.classes,
        data.class_values,
    )
    return _Read(rows, splits)


def _columns(spec: Any, data: Data, names: list[str]) -> list[dict[tuple[str, Any], int]]:
    """For each annotator's column the class by split and id."""
    if not names:
        return []
    _, pieces, _ = assemble(spec)
    out = []
    for name in names:
        known: dict[tuple[str, Any], int] = {}
        for split in LABELED_SPLITS:
            if split not in data.rows:
                continue
            piece = pieces[split]
            piece.raw.need(name, "--annotators")
            codes = read_labels(piece.raw, name, []).encode(data.classes)[piece.rows]
            known |= {(split, i): int(max(c, -1)) for i, c in zip(data.rows[split].ids.tolist(), codes, strict=True)}
        out.append(known)
    return out


def _net(said: Verdict, material: RunInputs) -> Model:
    """The ridge probe on the frozen backbone, its scores scaled as the audit weighs them."""
    assert said.ridge is not None
    assert said.stack is not None
    ridge, weight = said.ridge, said.stack.weights[0]
    head = LinearHead(len(ridge.mean), len(ridge.bias), init="zeros", standardize=(ridge.mean, ridge.std))
    with torch.no_grad():
        head.linear.weight.copy_(weight * ridge.weight.T)
        head.linear.bias.copy_(weight * ridge.bias + said.stack.bias)
    return Model(material.backbone.cpu() if material.backbone is not None else None, head)


LEAK = 0.98
"""Cosine of centered features from which on a test sample is a near-duplicate of a training sample."""


def _leaks(material: RunInputs, x: np.ndarray, said: Verdict, read: _Read) -> list[dict[str, Any]]:
    """Test samples that have a near-duplicate among the audited ones."""
    if "test" not in material.features or said.ridge is None:
        return []
    mean = said.ridge.mean
    known = torch.nn.functional.normalize(torch.from_numpy(x) - mean, dim=1)
    ids, out = material.data.rows["test"].ids.tolist(), []
    step = max(1, 24_000_000 // len(known))
    for start in range(0, len(ids), step):
        f = torch.as_tensor(np.asarray(material.features["test"][start : start + step], np.float32))
        best = (torch.nn.functional.normalize(f - mean, dim=1) @ known.T).max(1)
        for k in (best.values >= LEAK).nonzero().flatten().tolist():
            there = int(best.indices[k])
            out.append(
                {
                    "id": read.rows.ids[there],
                    "other_id": ids[start + k],
                    "split": read.rows.split[there],
                    "other_split": "test",
                    "cosine": float(best.values[k]),
                    "label": read.rows.y[there],
                    "other_label": int(material.data.rows["test"].y[start + k]),
                }
            )
    return out
