"""Audits from their input to their files: of arrays, or of data under a frozen backbone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch.nn import functional

from cleantune.audit.page import build
from cleantune.audit.result import Audit
from cleantune.audit.score_labels import AuditScores, score_features
from cleantune.audit.tables import build_audit, describe, write_tables
from cleantune.audit.validation import validate_annotators, validate_features, validate_labels, validate_probabilities
from cleantune.config.run import config_to_dict
from cleantune.data import Data
from cleantune.data.labels import read_labels
from cleantune.data.load import assemble
from cleantune.errors import UserError
from cleantune.label_quality.noise_model import Source
from cleantune.label_quality.posterior import LeaveOneOutProbe
from cleantune.label_quality.scores import score_probabilities
from cleantune.pipeline.arguments import FitArguments
from cleantune.pipeline.export import save_models
from cleantune.pipeline.inputs import RunInputs, fingerprint, prepare_inputs
from cleantune.pipeline.label_table import LABELED_SPLITS, LabelTable, label_table
from cleantune.pipeline.record import versions
from cleantune.pipeline.resolve import configure_table, resolve
from cleantune.storage.files import write_text
from cleantune.storage.run_dir import RunDir
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.utils.console import Console

DEFAULTS = {"data": {"validation_fraction": 0.0, "test_fraction": 0.0}, "method": {"name": "gce", "scope": "head"}}
"""Settings in which an audit differs from a training run: no split is set aside."""
LABEL_ARRAYS = ("label", "labels", "given")
"""Names under which labels are found in an .npz file of probabilities."""
LEAK_COSINE = 0.98
"""Cosine of centered features from which on a test sample is a near-duplicate of a labeled sample."""
BLOCK_CELLS = 24_000_000


def build_config_table(data: Any, model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the config table of an audit from its arguments."""
    seed = options.pop("seed", None)
    return FitArguments(data=data, model=model, seed=seed, config=DEFAULTS, options=options).to_table()


def audit_arrays(
    features: Any,
    pred_probs: Any,
    labels: Any,
    annotators: np.ndarray | None,
    source: Source,
    beta: float,
    *,
    out: str | Path | None,
    overwrite: bool,
    quiet: bool,
    origin: dict[str, str] | None = None,
) -> Audit:
    """Audit features or probabilities with their labels.

    Args:
        features: [N, D], or None.
        pred_probs: [N, C], or None.
        labels: Given labels.
        annotators: Labels of others [A, N].
        source: Origin of the probabilities.
        beta: beta of the F-measure that the threshold maximizes.
        out: Folder of the run; None writes no file.
        overwrite: Remove an earlier audit in `out`.
        quiet: Print nothing.
        origin: File and array that the labels were read from, for the record.
    """
    start, console = time.perf_counter(), Console(quiet)
    if pred_probs is not None:
        p = validate_probabilities(pred_probs, "pred_probs")
        y, names, values = validate_labels(labels, len(p), p.shape[1])
        votes = validate_annotators(annotators, values, len(y))
        scores = AuditScores(score_probabilities(p, torch.from_numpy(y), source, beta=beta, annotators=votes))
    else:
        x = validate_features(features, "features")
        y, names, values = validate_labels(labels, len(x), None)
        votes = validate_annotators(annotators, values, len(y))
        with console.progress("neighbors") as progress:
            scores = score_features(x, torch.from_numpy(y), len(names), beta=beta, annotators=votes, progress=progress)
    table = LabelTable(np.arange(len(y)), np.full(len(y), "train", dtype=object), y, None, names, values)
    kind = "probabilities" if pred_probs is not None else "features"
    audit = build_audit(scores, table, kind, time.perf_counter() - start)
    if out is None:
        return audit
    folder = RunDir(Path(out), overwrite=overwrite, kind="audit")
    folder.clear()
    record = {"audit": "arrays", "versions": versions()} | (origin or {})
    write_text(folder.path / RunDir.CONFIG, tomli_w.dumps({"record": record}))
    return write_audit(audit, scores, table, folder.path, console, None)


def audit_data(
    config_table: dict[str, Any], out: Path, annotators: list[str], source: Source, beta: float, *, overwrite: bool,
    quiet: bool,
) -> Audit:  # fmt: skip
    """Audit data by frozen features, or by the probabilities in an .npz file.

    Args:
        config_table: Config of the run, from `build_config_table`.
        out: Folder of the run.
        annotators: Names of columns with further labels.
        source: Origin of probabilities in a file.
        beta: beta of the F-measure that the threshold maximizes.
        overwrite: Remove an earlier audit in `out`.
        quiet: Print nothing.

    Raises:
        UserError: Data, model or annotators are missing or do not fit.
    """
    arrays = _read_probabilities(config_table["data"])
    if arrays is not None:
        p, labels, origin = arrays
        if annotators:
            raise UserError("--annotators: it names columns, which a file of probabilities does not have; leave it out")
        return audit_arrays(
            None, p, labels, None, source, beta, out=out, overwrite=overwrite, quiet=quiet, origin=origin
        )
    start, console = time.perf_counter(), Console(quiet)
    run = resolve(configure_table(config_table), console)
    votes = _annotator_labels(run.config.data, run.data, annotators)
    folder = RunDir(out, overwrite=overwrite, kind="audit")
    inputs = prepare_inputs(run.config, run.data, run.backbone, console)
    data = inputs.data
    table = label_table(data)
    keys = list(zip(table.split, table.ids.tolist(), strict=True))
    matrix = np.array([[column.get(key, -1) for key in keys] for column in votes]) if votes else None
    x = labeled_features(inputs)
    with console.progress("neighbors") as progress:
        scores = score_features(
            x, torch.from_numpy(table.y), len(data.classes), num_train=len(data.rows["train"]), beta=beta,
            annotators=matrix, progress=progress,
        )  # fmt: skip
    record = {
        "audit": "data",
        "fingerprint": fingerprint(inputs),
        "data_fingerprint": data.fingerprint,
        "versions": versions(),
    }
    folder.clear()
    write_text(folder.path / RunDir.CONFIG, tomli_w.dumps(config_to_dict(run.config) | {"record": record}))
    assert scores.labels.probe is not None
    leaks = _leaks(inputs, x, scores.labels.probe, table)
    audit = build_audit(scores, table, data.kind, time.perf_counter() - start, leaks)
    model = _probe_model(scores.labels.probe, inputs)
    save_models(folder.path / RunDir.MODEL, [model], classes=data.classes, class_values=data.class_values)
    return write_audit(audit, scores, table, folder.path, console, data)


def write_audit(
    audit: Audit, scores: AuditScores, table: LabelTable, folder: Path, console: Console, data: Data | None
) -> Audit:
    """Write tables and report into the folder, and print the result.

    Args:
        audit: The result.
        scores: Scores that it was built from.
        table: The labels.
        folder: Folder of the run.
        console: Console of the run.
        data: Data with the samples that the report shows, None for arrays.
    """
    write_tables(audit, scores, table, folder, data)
    report = build(folder)
    for line in [*describe(audit), f"report: {report}"]:
        console.info(line)
    return replace(audit, path=folder)


def labeled_features(inputs: RunInputs) -> np.ndarray:
    """Return the features of train and validation, in this order: [N, D]."""
    splits = [s for s in LABELED_SPLITS if s in inputs.data.rows]
    return np.concatenate([np.asarray(inputs.features[s], np.float32) for s in splits])


def _read_probabilities(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, str]] | None:
    """Return probabilities, labels and their origin, where the data are an .npz file with `pred_probs`."""
    source = data["data"]
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz" or not Path(source).is_file():
        return None
    with np.load(source, allow_pickle=False) as file:
        if "pred_probs" not in file.files:
            return None
        name = next((n for n in (data.get("label"), *LABEL_ARRAYS) if n in file.files), None)
        if name is None:
            raise UserError(f"{source} has no array of labels, only {', '.join(file.files)}; name it with --label")
        return file["pred_probs"], file[name], {"source": str(Path(source).resolve()), "label": name}


def _annotator_labels(spec: Any, data: Data, names: list[str]) -> list[dict[tuple[str, Any], int]]:
    """Return for each annotator's column the class number by split and id."""
    if not names:
        return []
    _, parts, _ = assemble(spec)
    out = []
    for name in names:
        codes_by_key: dict[tuple[str, Any], int] = {}
        for split in LABELED_SPLITS:
            if split not in data.rows:
                continue
            part = parts[split]
            part.raw.need(name, "--annotators")
            codes = read_labels(part.raw, name, []).encode(data.classes)[part.rows]
            ids = data.rows[split].ids.tolist()
            codes_by_key |= {(split, i): int(max(c, -1)) for i, c in zip(ids, codes, strict=True)}
        out.append(codes_by_key)
    return out


def _probe_model(probe: LeaveOneOutProbe, inputs: RunInputs) -> Model:
    """Return the frozen backbone with the probe as its head."""
    weight, bias = probe.linear()
    head = LinearHead(len(weight), len(bias), init="zeros", standardize=(probe.mean, probe.std))
    with torch.no_grad():
        head.linear.weight.copy_(weight.T)
        head.linear.bias.copy_(bias)
    return Model(inputs.backbone.cpu() if inputs.backbone is not None else None, head)


def _leaks(inputs: RunInputs, x: np.ndarray, probe: LeaveOneOutProbe, table: LabelTable) -> list[dict[str, Any]]:
    """Return the test samples that have a near-duplicate among the labeled ones."""
    if "test" not in inputs.features:
        return []
    rows = inputs.data.rows["test"]
    labeled = functional.normalize(torch.from_numpy(x) - probe.mean, dim=1)
    ids, out = rows.ids.tolist(), []
    step = max(1, BLOCK_CELLS // len(labeled))
    for start in range(0, len(ids), step):
        block = torch.as_tensor(np.asarray(inputs.features["test"][start : start + step], np.float32))
        best = (functional.normalize(block - probe.mean, dim=1) @ labeled.T).max(1)
        for k in (best.values >= LEAK_COSINE).nonzero().flatten().tolist():
            nearest = int(best.indices[k])
            out.append(
                {
                    "id": table.ids[nearest],
                    "other_id": ids[start + k],
                    "split": table.split[nearest],
                    "other_split": "test",
                    "cosine": float(best.values[k]),
                    "label": table.y[nearest],
                    "other_label": int(rows.y[start + k]),
                }
            )
    return out
