"""Test the evaluation of runs on domains: metrics, class subsets, many-to-one maps, and the verb."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from tiny import save_tiny

from cleantune.cli.main import main
from cleantune.errors import UserError
from cleantune.functional import metrics
from cleantune.pipeline.fit import fit
from cleantune.pipeline.predict import load
from cleantune.studies.evaluate import IN_DOMAIN, evaluate, pool_classes, table

NAMES = ["cat", "dog", "car"]


def drawn(seed: int, size: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    y = np.arange(size) % 3
    centers = np.random.default_rng(7).normal(size=(3, 6))
    return (centers[y] + shift + 0.4 * r.normal(size=(size, 6))).astype(np.float32), np.array(NAMES)[y]


def frame_of(x: np.ndarray, y: np.ndarray, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"features": list(x), "label": y} | more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Train two seeds of NMTune on embeddings."""
    folder, out = tmp_path_factory.mktemp("evaluation"), []
    x, y = drawn(0, 240)
    np.savez(folder / "train.npz", features=x, label=y)
    short = {"method.probe.epochs": 8, "method.probe.min_steps": 0}
    for seed in range(2):
        out.append(folder / f"run{seed}")
        fit(folder / "train.npz", out=out[-1], method="nmtune", test_fraction=0.3, seed=seed, settings=short,
            quiet=True)  # fmt: skip
    return out


def test_evaluate_gives_a_row_per_domain_and_test_split(runs: list[Path], tmp_path: Path) -> None:
    x, y = drawn(1, 90)
    far, _ = drawn(2, 90, shift=3.0)
    both = frame_of(np.concatenate([x, far]), np.concatenate([y, y]), place=["near"] * 90 + ["far"] * 90)
    both.to_parquet(tmp_path / "other.parquet")
    out = tmp_path / "sub" / "table.parquet"
    assert main(["evaluate", str(runs[0]), "--ood", str(tmp_path / "other.parquet"), "--domain-column", "place",
                 "--out", str(out)]) == 0  # fmt: skip
    found = pd.read_parquet(out).set_index("domain")
    assert list(found.index) == [IN_DOMAIN, "near", "far"]
    assert found.loc["near", "samples"] == 90
    assert found.loc["near", "accuracy"] > 0.9
    assert found.loc["near", "accuracy"] >= found.loc["far", "accuracy"]
    assert {"balanced_accuracy", "macro_f1", "mcc", "calibration_error"} <= set(found.columns)


def test_table_shows_means_and_deviations_over_seeds(runs: list[Path]) -> None:
    x, y = drawn(1, 30)
    words = table(evaluate(runs, [frame_of(x, y)]))
    assert "mean out of domain" in words
    assert "±" in words
    assert "run0" in words


def test_evaluate_subset_restricts_classes(runs: list[Path]) -> None:
    x, y = drawn(3, 120, shift=1.5)
    some = frame_of(x[y != "car"], y[y != "car"])
    every, subset = (evaluate(runs[0], [some], subset=s).iloc[-1] for s in (False, True))
    assert subset.accuracy >= every.accuracy


def test_evaluate_class_map_takes_the_best_class(runs: list[Path], tmp_path: Path) -> None:
    x, y = drawn(4, 90)
    coarse = np.where(y == "car", "vehicle", "animal")
    (tmp_path / "map.toml").write_text('cat = "animal"\ndog = "animal"\ncar = "vehicle"\n')
    row = evaluate(runs[0], [frame_of(x, coarse)], class_map=tmp_path / "map.toml").iloc[-1]
    assert row.accuracy > 0.9


def test_pool_classes_is_a_softmax_of_the_largest_scores() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found, targets = pool_classes(p, list("abcd"), {"a": "x", "b": "x", "c": "y"}, None)
    best = np.stack([logits[:, :2].max(1), logits[:, 2]], 1)
    np.testing.assert_allclose(found, np.exp(best) / np.exp(best).sum(1, keepdims=True))
    assert targets == ("x", "y")
    masked, left = pool_classes(p, list("abcd"), None, ["b", "d"])
    kept = np.exp(logits[:, [1, 3]])
    np.testing.assert_allclose(masked, kept / kept.sum(1, keepdims=True))
    assert left == ("b", "d")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"domain_column": "plase"}, 'no column "plase"'),
        ({"label": "kind"}, 'the label "bird" is no class of the run'),
        ({"class_map": {"cow": "x"}}, 'the class map names "cow"|is no class'),
        ({"class_map": "nowhere.toml"}, "no class map nowhere.toml"),
        ({"class_map": {}}, "a class map has lines"),
    ],
)
def test_evaluate_refuses_unfitting_data_in_one_sentence(runs: list[Path], more: dict[str, Any], message: str) -> None:
    x, y = drawn(5, 6)
    with pytest.raises(UserError, match=message):
        evaluate(runs[0], [frame_of(x, y, place="a", kind="bird")], **more)


def test_evaluate_verb_exits_with_code_2_and_one_sentence(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["evaluate", str(tmp_path)], ["evaluate", str(runs[0]), "--out", "x.txt"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_metrics_equal_loops_and_scikit_learn(seed: int) -> None:
    r = np.random.default_rng(seed)
    y, predicted = r.integers(4, size=40), r.integers(4, size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metrics.balanced_accuracy(predicted, y) == pytest.approx(balanced_accuracy_score(y, predicted))
    f1 = []
    for c in set(y) | set(predicted):
        hit = ((y == c) & (predicted == c)).sum()
        f1.append(2 * hit / max(1, (y == c).sum() + (predicted == c).sum()))
    assert metrics.macro_f1(predicted, y) == pytest.approx(np.mean(f1))
    p = r.dirichlet(np.ones(4), 40)
    total = 0.0
    for low in np.arange(15) / 15:
        here = [i for i in range(40) if low < p[i].max() <= low + 1 / 15 + 1e-12]
        if here:
            right = np.mean([p[i].argmax() == y[i] for i in here])
            total += len(here) / 40 * abs(right - np.mean([p[i].max() for i in here]))
    assert metrics.calibration_error(p, y) == pytest.approx(total)


def test_correlations_need_variation() -> None:
    assert metrics.pearson(np.ones(3), np.arange(3.0)) is None
    assert metrics.pearson(2 * np.arange(4.0), np.arange(4.0)) == pytest.approx(1.0)
    assert metrics.matthews_corrcoef(np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])) == pytest.approx(1.0)
    for measure in (metrics.balanced_accuracy, metrics.macro_f1, metrics.matthews_corrcoef):
        assert measure(np.zeros(0, int), np.zeros(0, int)) is None


def test_runs_share_cached_features_of_a_frozen_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANTUNE_CACHE", str(tmp_path / "cache"))
    model = save_tiny("bert", tmp_path / "bert")
    texts = pd.DataFrame({"text": [f"w{i % 3} w{3 + i % 7}" for i in range(60)], "label": [i % 3 for i in range(60)]})
    other = texts.iloc[::-2].reset_index(drop=True)
    for method in ("ce", "mlp"):
        fit(texts, model, out=tmp_path / method, method=method, quiet=True, precision="float32",
            settings={"method.probe.epochs": 2, "method.probe.min_steps": 0})  # fmt: skip
    first = load(tmp_path / "ce")
    rows = first.read(other)
    plain = first.probabilities(rows)
    before = set((tmp_path / "cache").iterdir())
    np.testing.assert_allclose(first.probabilities(rows, cached=True), plain, rtol=1e-4, atol=1e-6)
    after = set((tmp_path / "cache").iterdir())
    assert len(after - before) == 1
    second = load(tmp_path / "mlp")
    np.testing.assert_allclose(
        second.probabilities(rows, cached=True), second.probabilities(rows), rtol=1e-4, atol=1e-6
    )
    assert set((tmp_path / "cache").iterdir()) == after
