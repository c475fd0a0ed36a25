"""Synthetic run folders in the format of `fit`, for tests of their readers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tomli_w
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
THRESHOLD = 0.6
"""Probability of a label error from which on a label is an issue."""


def make_run(
    folder: Path,
    *,
    names: tuple[str, ...] = CLASSES,
    size: int = 400,
    kind: Literal["image", "text", "features"] = "image",
    truth: bool = True,
    test: bool = True,
    selected_model: str = "tune",
    harm: bool = False,
    text: str = "how do I set an alarm for {}",
    noise: float = 0.4,
    seed: int = 0,
) -> Path:
    """Write a run folder without model and checkpoint; `size` is the number of training and validation samples."""
    rng = np.random.default_rng(seed)
    (folder / "artifacts").mkdir(parents=True)
    table = _samples(rng, names, size, noise)
    if not truth:
        table = table.drop(columns="true_label")
    table = table.sort_values(["label_score", "split", "id"]).reset_index(drop=True)
    table.to_parquet(folder / "labels.parquet")
    table.to_csv(folder / "labels.csv", index=False)
    _write(folder / "artifacts" / "gallery.json", _gallery(rng, table, kind, text))
    rows = _rows(rng, truth=truth, test=test, harm=harm)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = _summary(table, names, kind, truth=truth, test=test, selected_model=selected_model, harm=harm)
    _write(folder / "summary.json", summary)
    config = {
        "data": {"data": "photos/cifar10_train.parquet", "label": "human_worst", "limit": 10000, "split_seed": 0},
        "method": {"name": "robust", "q": 0.7, "tau": 0.6, "probe": {"epochs": 20}, "tune": {"epochs": 4}},
        "model_selection": "noisy-val",
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    return folder


def change_summary(folder: Path, **changes: Any) -> None:
    """Replace top-level keys of summary.json."""
    path = folder / "summary.json"
    _write(path, json.loads(path.read_text()) | changes)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _samples(rng: np.random.Generator, names: tuple[str, ...], size: int, noise: float) -> pd.DataFrame:
    count = len(names)
    true = rng.integers(0, count, size)
    wrong = rng.random(size) < noise * (0.5 + true / count)
    given = np.where(wrong, (true + 1 + (rng.random(size) ** 3 * (count - 1)).astype(int)) % count, true)
    wrong = given != true
    score = np.where(wrong, rng.beta(1.2, 5, size), rng.beta(6, 1.2, size))
    suggested = np.where(rng.random(size) < 0.9, true, given)
    labels = np.array(names, dtype=object)
    return pd.DataFrame(
        {
            "id": [f"train-{i:05}" for i in range(size)],
            "split": np.where(rng.random(size) < 0.9, "train", "validation"),
            "given_label": labels[given],
            "suggested_label": labels[suggested],
            "label_score": score,
            "p_wrong": 1 - score,
            "is_label_issue": 1 - score >= THRESHOLD,
            "true_label": labels[true],
        }
    )


def _gallery(rng: np.random.Generator, table: pd.DataFrame, kind: str, text: str) -> list[dict[str, Any]]:
    entries = []
    for row in table.head(60).to_dict("records"):
        picture = None
        if kind == "image":
            ramp = np.linspace(0, 1, 64)[:, None, None]
            top, bottom = rng.integers(0, 256, (2, 3))
            pixels = (top * ramp + bottom * (1 - ramp) + np.zeros((64, 64, 3))).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            picture = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        keep = {key: value for key, value in row.items() if key not in ("is_label_issue", "p_wrong")}
        words = text.format(row["id"]) if kind == "text" else None
        entries.append(keep | {"kind": kind, "thumbnail": picture, "text": words})
    return entries


def _rows(rng: np.random.Generator, *, truth: bool, test: bool, harm: bool) -> list[dict[str, Any]]:
    rows = []
    for step in range(24):
        probe = step < 20
        level = 0.4 + 0.12 * (1 - 0.8**step) + (0 if probe else (-0.1 if harm else 0.14) * (step - 19) / 4)
        level += float(rng.normal(0, 0.003))
        picked = None if probe else 4200 + 300 * (step - 20)
        spread = None if picked is None else {"min": picked * 0.06, "median": picked * 0.1, "max": picked * 0.13}
        rows.append(
            {
                "phase": "probe" if probe else "tune",
                "epoch": step if probe else step - 20,
                "accuracy_validation": 0.62 * level + 0.05,
                "accuracy_test": level if test else None,
                "loss": 2 - level,
                "learning_rate": 1e-3,
                "selected": picked,
                "selected_per_class": spread,
                "purity": None if probe or not truth else 0.8 + 0.02 * (step - 20),
                "recall": None if probe or not truth else 0.6 + 0.05 * (step - 20),
                "auroc": None if probe or not truth else 0.82 + 0.01 * (step - 20),
                "distinct_predictions": 10,
                "forward_passes": 9000 * (step + 1),
                "seconds": 1.5,
                "skipped": 0,
            }
        )
    return rows


def _summary(
    table: pd.DataFrame, names: tuple[str, ...], kind: str, *, truth: bool, test: bool, selected_model: str, harm: bool
) -> dict[str, Any]:
    probe, tune = 0.521, 0.42 if harm else 0.662
    why = "it is the last phase, and not below the probe on the noisy validation split"
    if selected_model == "probe":
        why = "Fine-tuning ended at 31.0 % on the noisy validation split, the probe at 37.4 %"
    per_class = {}
    for place, name in enumerate(names):
        of_class = table[table["given_label"] == name]
        rate = 0.2 + 0.4 * ((7 * place) % len(names)) / len(names)
        entry: dict[str, Any] = {"estimated_rate": rate, "size": len(of_class)}
        if truth and len(of_class):
            entry["true_rate"] = float((of_class["given_label"] != of_class["true_label"]).mean())
        per_class[name] = entry
    noise = {
        "estimated_rate": 0.412,
        "estimated_range": [0.38, 0.45],
        "identifiable": True,
        "reason": None,
        "per_class": per_class,
    }
    train = int((table["split"] == "train").sum())
    either = lambda value: value if test else None  # noqa: E731
    return {
        "method": "robust",
        "scope": "all",
        "preset": "default",
        "seed": 0,
        "classes": len(names),
        "class_names": list(names),
        "kind": kind,
        "model": {
            "name": "models/mobilenet_v2_0.35",
            "architecture": "mobilenet_v2",
            "feature": "global average pool of the last map",
            "width": 1280,
            "parameters": 396160,
        },
        "samples": {
            "train": train,
            "validation": len(table) - train,
            "test": 10000 if test else 0,
            "unlabeled": 3,
            "unreadable": 0,
        },
        "accuracy": {
            "test": either(probe if selected_model == "probe" else tune),
            "best_validation": either(tune),
            "validation": 0.374 if selected_model == "probe" else 0.31 if harm else 0.44,
            "by_phase": {
                "probe": {"test": either(probe), "validation": 0.374},
                "tune": {"test": either(tune), "validation": 0.31 if harm else 0.44},
            },
        },
        "selected_model": selected_model,
        "selection_reason": why,
        "baseline": {
            "name": "CE linear probe",
            "accuracy": {"test": either(0.469), "validation": 0.35},
            "seconds": 2.4,
        },
        "noise": noise | ({"true_rate": 0.402} if truth else {}),
        "issues": {"count": int(table["is_label_issue"].sum()), "threshold": THRESHOLD},
        "selection": {"size": 5100} | ({"purity": 0.86, "recall": 0.75, "auroc": 0.85} if truth else {}),
        "cost": {
            "forward_passes": 10.9 * train,
            "evaluation_forward_passes": 2000,
            "training_samples": 2 * train,
            "optimizer_steps": 640,
            "seconds": {"extract": 31.2, "probe": 4.1, "score": 22.0, "tune": 214.9, "total": 281.3},
            "peak_bytes": 1_310_000_000,
        },
        "log": [
            "Label column guessed: human_worst.",
            "3 rows without a label are kept out of training and predicted.",
        ],
        "warnings": ["1 classes have fewer than 10 training samples, too few to score their labels: cat"],
        "versions": {"cleantune": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "command": "cleantune fit photos/cifar10_train.parquet --label human_worst --out runs/x",
    }
