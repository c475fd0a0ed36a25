"""Audits from their input to their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import cleantune
from cleantune.cli.main import cli
from cleantune.errors import UserError

COLUMNS = {"id", "split", "given_label", "suggested_label", "label_score", "p_wrong", "is_label_issue"}


def embeddings(folder: Path, count: int = 600, noise: float = 0.15) -> tuple[Path, np.ndarray, np.ndarray]:
    """An .npz of blobs with wrong labels; given and true labels."""
    rng = np.random.default_rng(0)
    true = np.arange(count) % 3
    x = 3 * rng.normal(size=(3, 8))[true] + rng.normal(size=(count, 8))
    given = np.where(rng.random(count) < noise, (true + rng.integers(1, 3, count)) % 3, true)
    names = np.array(["ant", "bee", "cat"])
    np.savez(folder / "e.npz", features=x.astype("f4"), label=names[given], id=np.arange(count))
    return folder / "e.npz", names[given], names[true]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of embeddings."""
    folder = tmp_path_factory.mktemp("audit")
    data, _, _ = embeddings(folder)
    cleantune.audit(data, out=folder / "run", quiet=True)
    return folder / "run"


def test_arrays_are_audited_and_most_wrong_labels_found(tmp_path: Path) -> None:
    path, given, true = embeddings(tmp_path)
    with np.load(path) as file:
        result = cleantune.audit(features=file["features"], labels=file["label"], quiet=True)
    assert set(result.labels.columns) >= COLUMNS
    assert result.noise_rate_range is not None
    assert result.noise_rate_range[0] <= (given != true).mean() <= result.noise_rate_range[1]
    flagged = result.labels.set_index("id").loc[np.arange(600), "is_label_issue"].to_numpy()
    wrong = given != true
    assert 2 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum()) > 0.9
    worst = result.labels[result.labels["is_label_issue"]]
    assert (worst["suggested_label"] == true[worst["id"]]).mean() > 0.9
    assert result.labels["label_score"].is_monotonic_increasing
    assert result.transition is not None
    assert result.transition.shape == (3, 3)


def test_memory_mapped_probabilities_equal_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4) * 0.3, 3000).astype("f4")
    y = p.argmax(1)
    y[:400] = (y[:400] + 1) % 4
    np.save(tmp_path / "p.npy", p)
    a = cleantune.audit(pred_probs=p, labels=y)
    b = cleantune.audit(pred_probs=np.load(tmp_path / "p.npy", mmap_mode="r"), labels=y)
    pd.testing.assert_frame_equal(a.labels, b.labels)


def test_random_features_are_not_identifiable() -> None:
    rng = np.random.default_rng(0)
    result = cleantune.audit(features=rng.normal(size=(900, 16)), labels=rng.integers(0, 4, 900), quiet=True)
    assert result.noise_rate is None
    assert result.noise_rate_range is None
    assert result.cannot_tell
    assert not result.identifiable
    assert "do not separate" in result.reason
    assert not result.labels["is_label_issue"].any()


def test_reliable_annotators_find_what_features_do_not_show() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(900) % 3
    x = 0.8 * np.eye(3)[true] + rng.normal(size=(900, 3))
    given = np.where(rng.random(900) < 0.2, (true + 1) % 3, true)
    others = np.where(rng.random((3, 900)) < 0.9, true, rng.integers(0, 3, (3, 900)))
    result = cleantune.audit(features=x, labels=given, annotators=others, quiet=True)
    order = result.labels.set_index("id").loc[np.arange(900)]
    wrong = given != true
    top = order["label_score"].rank().to_numpy() <= wrong.sum()
    assert (top & wrong).sum() / wrong.sum() > 0.9


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({}, "none of them"),
        ({"features": np.zeros((20, 2)), "pred_probs": np.zeros((20, 2))}, "one of"),
        ({"features": np.zeros((20, 2))}, "labels are missing"),
        ({"features": np.zeros((20, 2)), "labels": np.zeros(19)}, "19"),
        ({"features": np.full((20, 2), np.nan), "labels": np.arange(20) % 2}, "row 0"),
        ({"features": np.zeros((20, 2)), "labels": np.zeros(20)}, "one class"),
        ({"features": np.zeros((20, 2)), "labels": [None, *"ab" * 9, "a"]}, "row 0"),
        ({"pred_probs": np.full((20, 2), 0.7), "labels": np.arange(20) % 2}, "row 0"),
        ({"pred_probs": np.full((20, 2), 0.5), "labels": np.arange(20) % 3}, "row 2"),
        ({"pred_probs": np.full((20, 2), 0.5), "labels": np.arange(20) % 2, "beta": 0}, "beta"),
        ({"pred_probs": np.full((20, 2), 0.5), "labels": np.arange(20) % 2, "source": "oracle"}, "source"),
        ({"pred_probs": np.full((20, 2), 0.5), "labels": np.arange(20) % 2, "label": "x"}, "label"),
        ({"data": "nowhere.csv"}, "--out"),
    ],
)
def test_wrong_input_is_a_user_error(said: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=names):
        cleantune.audit(**said)


def test_command_line_writes_the_folder(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["audit", str(run.parent / "e.npz"), "--out", str(tmp_path / "again"), "--quiet"])
    assert done.exit_code == 0, done.output
    for name in ("labels.csv", "transition.csv", "by_class.csv", "pairs.csv", "duplicates.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    assert "About" in (run / "report.html").read_text()
    x = cleantune.load(run).features(ids=[5, 3])
    with np.load(run.parent / "e.npz") as file:
        np.testing.assert_allclose(x, file["features"][[5, 3]])


def test_fit_of_a_probe_lists_labels_by_the_scores_of_an_audit(run: Path, tmp_path: Path) -> None:
    options = {"validation_fraction": 0.0, "test_fraction": 0.0, "quiet": True}
    cleantune.fit(run.parent / "e.npz", method="ce", scope="head", out=tmp_path / "fit", **options)
    ours, theirs = (pd.read_parquet(folder / "labels.parquet") for folder in (tmp_path / "fit", run))
    columns = ["id", "given_label", "suggested_label", "label_score", "p_wrong", "is_label_issue"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])
    assert ours["selected"].all()
