"""Application of decisions: cleaned data, a new ranking, or the list of labels in another tool's format."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cleantune.audit.run import labeled_features, write_audit
from cleantune.audit.score_labels import AuditScores, score_features
from cleantune.audit.tables import build_audit, describe
from cleantune.config.run import configure, load_toml, read_config
from cleantune.data.write_cleaned import write_cleaned
from cleantune.errors import UserError
from cleantune.pipeline.inputs import prepare_inputs
from cleantune.pipeline.label_table import LabelTable, label_table
from cleantune.pipeline.resolve import configure_table, resolve
from cleantune.review.decisions import Decision, latest_decisions, read_decisions
from cleantune.review.exports import write_export
from cleantune.storage.files import read_json, write_table
from cleantune.storage.run_dir import RunDir, folder_kind
from cleantune.utils.console import Console

DecisionsByRow = dict[tuple[str, str], Decision]
"""Decisions by split and id."""


def apply_decisions(
    run: Path, decisions: Path | None, out: Path | None, *, retrain: bool = False, export: str | None = None
) -> list[str]:
    """Apply decisions, and return sentences on what was done.

    Args:
        run: Folder of the audit.
        decisions: File of decisions; None takes that of the run.
        out: File of the cleaned data, or of the export.
        retrain: Fit the probe again and rank again, in the folder of the run. Decided labels stay decided.
        export: Format of another tool, instead of data.

    Raises:
        UserError: An input is wrong; the message names it and the remedy.
    """
    if not (run / RunDir.LABELS).is_file():
        raise UserError(f"{run} has no {RunDir.LABELS}: name the folder of an audit or of a run")
    if out is None and not retrain:
        raise UserError("nothing to do: name --out for the cleaned data, or --retrain")
    file = decisions or run / "decisions.csv"
    if not file.is_file() and (export is None or decisions is not None):
        raise UserError(f"{file} does not exist: decide with cleantune review {run}, or name the file of decisions")
    decided = latest_decisions(list(read_decisions(file))) if file.is_file() else {}
    messages = []
    if out is not None and export is not None:
        messages.append(write_export(run, decided, export, out))
    elif out is not None:
        num_changed, num_dropped = _write_cleaned(run, decided, out)
        messages.append(f"{out}: {num_changed:,} labels changed, {num_dropped:,} rows dropped")
    if retrain:
        messages += _retrain(run, decided)
    return messages


def _write_cleaned(run: Path, decided: DecisionsByRow, out: Path) -> tuple[int, int]:
    """Write the data with the decisions in them, and return the numbers of changed labels and dropped rows."""
    relabeled = {key: d.label for key, d in decided.items() if d.decision == "relabel"}
    dropped = {key for key, d in decided.items() if d.decision == "drop"}
    table = read_config(run / RunDir.CONFIG)
    if "data" not in table:
        return _write_cleaned_arrays(run, relabeled, dropped, out)
    config = configure(table)
    if config.run.noise is not None:
        raise UserError(f"{run} injected noise {config.run.noise}: its data have no such labels to clean")
    return write_cleaned(config.data, relabeled, dropped, out)


def _write_cleaned_arrays(
    run: Path, relabeled: dict[tuple[str, str], str], dropped: set[tuple[str, str]], out: Path
) -> tuple[int, int]:
    """Write arrays as an .npz file if they were read from one, or as a table of id and label."""
    import pandas as pd

    record = load_toml(run / RunDir.CONFIG).get("record", {})
    frame = pd.read_parquet(run / RunDir.LABELS).sort_values("id")
    values = {str(v): v for v in [*frame["given_label"].unique(), *frame["suggested_label"].unique()]}
    keys = [(s, str(i)) for s, i in zip(frame["split"], frame["id"], strict=True)]
    unknown = [key for key in [*relabeled, *dropped] if key not in set(keys)]
    if unknown:
        raise UserError(f'the audit has no row "{unknown[0][1]}": are these its decisions?')
    labels = [
        values.get(relabeled[key], relabeled[key]) if key in relabeled else value
        for key, value in zip(keys, frame["given_label"], strict=True)
    ]
    keep = np.array([key not in dropped for key in keys])
    if out.suffix == ".npz":
        if "source" not in record:
            raise UserError(f"{out}: the audit was of arrays in memory; write the labels as .parquet or .csv")
        with np.load(record["source"], allow_pickle=False) as file:
            arrays: dict[str, Any] = {n: file[n][keep] if len(file[n]) == len(keep) else file[n] for n in file.files}
        arrays[record["label"]] = np.array(labels)[keep]

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, **arrays)

        write_table(out, write)
    elif out.suffix in (".parquet", ".csv"):
        table = pd.DataFrame({"id": frame["id"], "label": labels})[keep]
        is_parquet = out.suffix == ".parquet"
        write_table(out, lambda p: table.to_parquet(p, index=False) if is_parquet else table.to_csv(p, index=False))
    else:
        raise UserError(f"{out}: arrays are written as .npz, .parquet or .csv")
    return len(relabeled), len(dropped)


def _retrain(run: Path, decided: DecisionsByRow) -> list[str]:
    """Fit the probe on the decided labels and write the new ranking into the folder of the run."""
    start, console = time.perf_counter(), Console(quiet=True)
    if folder_kind(load_toml(run / RunDir.CONFIG)) == "run":  # its summary and model would no longer fit its labels
        raise UserError(f"--retrain: {run} is a training run; write cleaned data with --out and train on them instead")
    config_table = read_config(run / RunDir.CONFIG)
    if "data" not in config_table:
        raise UserError(f"{run} was an audit of arrays, whose features are not kept: audit the cleaned arrays instead")
    resolved = resolve(configure_table(config_table), console)
    inputs = prepare_inputs(resolved.config, resolved.data, resolved.backbone, console)
    table = label_table(inputs.data)
    keys = [(s, str(i)) for s, i in zip(table.split, table.ids.tolist(), strict=True)]
    keep = np.array([key not in decided or decided[key].decision != "drop" for key in keys])
    y, is_decided = _apply_to_labels(table, keys, decided)
    table = _take(table, y, keep)
    scores = score_features(
        labeled_features(inputs)[keep],
        torch.from_numpy(table.y),
        len(table.class_names),
        num_train=int((table.split == "train").sum()),
    )
    _mark_decided(scores, table, torch.from_numpy(is_decided[keep]))
    audit = build_audit(scores, table, inputs.data.kind, time.perf_counter() - start)
    audit.summary["decided"] = len(decided)
    num_before = int(read_json(run / RunDir.SUMMARY)["issues"]["count"])
    audit = write_audit(audit, scores, table, run, console, inputs.data)
    num_issues = int(audit.labels["is_label_issue"].sum())
    seconds = time.perf_counter() - start
    first = f"ranked again in {seconds:.0f} s: {num_issues:,} labels are listed as wrong, {num_before:,} before"
    return [first, *describe(audit)]


def _apply_to_labels(
    table: LabelTable, keys: list[tuple[str, str]], decided: DecisionsByRow
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels after the decisions, and which of them a reviewer kept or changed."""
    number = {name: c for c, name in enumerate(table.class_names)}
    y, is_decided = table.y.copy(), np.zeros(len(table.y), dtype=bool)
    for k, key in enumerate(keys):
        if key in decided and decided[key].decision in ("keep", "relabel"):
            is_decided[k] = True
            if decided[key].decision == "relabel":
                y[k] = number[decided[key].label]
    return y, is_decided


def _take(table: LabelTable, y: np.ndarray, keep: np.ndarray) -> LabelTable:
    """Return the kept rows of a table with new labels."""
    return LabelTable(
        ids=table.ids[keep],
        split=table.split[keep],
        y=y[keep],
        true_y=None if table.true_y is None else table.true_y[keep],
        class_names=table.class_names,
        class_values=table.class_values,
        content_column=table.content_column,
        content=None if table.content is None else table.content[keep],
    )


def _mark_decided(scores: AuditScores, table: LabelTable, is_decided: torch.Tensor) -> None:
    """Give labels that a reviewer kept or changed the best score."""
    labels = scores.labels
    labels.label_score[is_decided], labels.p_wrong[is_decided], labels.is_issue[is_decided] = 1.0, 0.0, False
    labels.suggested[is_decided], labels.confidence[is_decided] = torch.from_numpy(table.y)[is_decided], 1.0
