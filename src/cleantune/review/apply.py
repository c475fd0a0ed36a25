"""What a person decided, put into the data; the probe fitted anew on it; the list in forms of other tools."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cleantune.config.run import configure, load_toml, read_config
from cleantune.data.write_cleaned import write_cleaned
from cleantune.errors import UserError
from cleantune.review.decisions import Decision, latest_decisions, read
from cleantune.storage.files import read_json, write_table
from cleantune.utils.console import Console

Decided = dict[tuple[str, str], Decision]


def apply_decisions(
    run: Path, decisions: Path | None, out: Path | None, *, retrain: bool = False, export: str | None = None
) -> list[str]:
    """Put decisions into effect, and say in sentences what was done.

    Args:
        run: Folder of the audit.
        decisions: File of decisions; None: the run's own.
        out: Where the cleaned data, or the export, are written.
        retrain: Fit the probe anew and rank again, in the folder of the run. What was decided stays decided.
        export: A form of another tool, instead of data.

    Raises:
        UserError: Something the user can put right.
    """
    if not (run / "labels.parquet").is_file():
        raise UserError(f"{run} holds no labels.parquet: name the folder of an audit or of a run")
    if out is None and not retrain:
        raise UserError("nothing to do: name --out for the cleaned data, or --retrain")
    file = decisions or run / "decisions.csv"
    if not file.is_file() and (export is None or decisions is not None):
        raise UserError(f"{file} does not exist: decide with cleantune review {run}, or name the file of decisions")
    decided = latest_decisions(list(read(file))) if file.is_file() else {}
    told = []
    if out is not None and export is not None:
        from cleantune.review.exports import write_export

        told.append(write_export(run, decided, export, out))
    elif out is not None:
        changed, dropped = _cleaned(run, decided, out)
        told.append(f"{out}: {changed:,} labels changed, {dropped:,} rows left out")
    if retrain:
        told += _retrained(run, decided)
    return told


def _cleaned(run: Path, decided: Decided, out: Path) -> tuple[int, int]:
    relabeled = {key: d.label for key, d in decided.items() if d.decision == "relabel"}
    dropped = {key for key, d in decided.items() if d.decision == "drop"}
    table = read_config(run / "config.toml")
    if "data" in table:
        config = configure(table)
        if config.run.noise is not None:
            raise UserError(
                f"{run} was a rehearsal with noise {config.run.noise}: its data have no such labels to clean"
            )
        return write_cleaned(config.data, relabeled, dropped, out)
    return _cleaned_arrays(run, relabeled, dropped, out)


def _cleaned_arrays(
    run: Path, relabeled: dict[tuple[str, str], str], dropped: set[tuple[str, str]], out: Path
) -> tuple[int, int]:
    """Arrays come back as an .npz where they came in one, else as a table of id and label."""
    import pandas as pd

    record = load_toml(run / "config.toml").get("record", {})
    frame = pd.read_parquet(run / "labels.parquet").sort_values("id")
    values = {str(v): v for v in [*frame["given_label"].unique(), *frame["suggested_label"].unique()]}
    keys = [(s, str(i)) for s, i in zip(frame["split"], frame["id"], strict=True)]
    known = set(keys)
    for key in [*relabeled, *dropped]:
        if key not in known:
            raise UserError(f'the audit has no row "{key[1]}": are these its decisions?')
    labels = [
        values.get(relabeled[k], relabeled[k]) if k in relabeled else v
        for k, v in zip(keys, frame["given_label"], strict=True)
    ]
    keep = np.array([k not in dropped for k in keys])
    if out.suffix == ".npz":
        if "source" not in record:
            raise UserError(f"{out}: the audit was of arrays in memory; write the labels as .parquet or .csv")
        with np.load(record["source"], allow_pickle=False) as file:
            arrays: dict[str, Any] = {n: file[n][keep] if len(file[n]) == len(keep) else file[n] for n in file.files}
        arrays[record["label"]] = np.array(labels)[keep]

        def write(path: Path) -> None:
            with path.open("wb") as whole:
                np.savez(whole, **arrays)

        write_table(out, write)
    elif out.suffix in (".parquet", ".csv"):
        table = pd.DataFrame({"id": frame["id"], "label": labels})[keep]
        write_table(
            out,
            lambda p: table.to_parquet(p, index=False) if out.suffix == ".parquet" else table.to_csv(p, index=False),
        )
    else:
        raise UserError(f"{out}: arrays are written as .npz, .parquet or .csv")
    return len(relabeled), len(dropped)


def _retrained(run: Path, decided: Decided) -> list[str]:
    """The probe on the decided labels, and the list it makes; rows that a person judged are not judged again."""
    from cleantune.audit.run import read_labels_of_splits
    from cleantune.audit.score_labels import score_features
    from cleantune.audit.tables import LabelTable, build_audit, words, write
    from cleantune.pipeline.inputs import prepare_inputs
    from cleantune.pipeline.resolve import configure_table, resolve

    start, console = time.perf_counter(), Console(quiet=True)
    table = read_config(run / "config.toml")
    if "data" not in table:
        raise UserError(f"{run} was an audit of arrays, whose features are not kept: audit the cleaned arrays instead")
    resolved = resolve(configure_table(table), console)
    config, data = resolved.config, resolved.data
    material = prepare_inputs(config, data, resolved.backbone, console)
    read = read_labels_of_splits(material.data)
    x = np.concatenate([np.asarray(material.features[s], np.float32) for s in read.splits])
    rows = read.rows
    keys = [(s, str(i)) for s, i in zip(rows.split, rows.ids.tolist(), strict=True)]
    number = {name: c for c, name in enumerate(rows.names)}
    y = rows.y.copy()
    for k, key in enumerate(keys):
        if key in decided and decided[key].decision == "relabel":
            y[k] = number[decided[key].label]
    kept = np.array([key not in decided or decided[key].decision != "drop" for key in keys])
    sure = torch.tensor([key in decided and decided[key].decision in ("keep", "relabel") for key in keys])[
        torch.from_numpy(kept)
    ]
    truth = None if rows.truth is None else rows.truth[kept]
    rows = LabelTable(rows.ids[kept], rows.split[kept], y[kept], truth, rows.names, rows.values)
    said = score_features(x[kept], torch.from_numpy(rows.y), len(rows.names))
    said.score[sure], said.p_wrong[sure], said.issue[sure] = 1.0, 0.0, False
    said.suggested[sure] = torch.from_numpy(rows.y)[sure]
    said.confidence[sure] = 1.0
    found = build_audit(said, rows, data.kind, time.perf_counter() - start)
    found.summary["decided"] = len(decided)
    before = int(read_json(run / "summary.json")["issues"]["count"])
    found = write(found, said, rows, run, console, material.data)
    now = int(found.labels["is_label_issue"].sum())
    return [
        f"ranked again in {time.perf_counter() - start:.0f} s: {now:,} labels look wrong, {before:,} before",
        *words(found),
    ]
