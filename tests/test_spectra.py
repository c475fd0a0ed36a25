"""Studies of spectra: table, values and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cleantune.cli.main import main
from cleantune.errors import UserError
from cleantune.functional.spectrum import spectrum
from cleantune.pipeline.fit import fit
from cleantune.studies.spectrum import study


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    r = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (r.normal(size=(3, 5))[y] + r.normal(size=(120, 5))).astype(np.float32)
    split = np.where(np.arange(120) % 4 == 0, "test", "train")
    np.savez(tmp_path / "some.npz", features=x, label=y, split=split)
    return tmp_path / "some.npz"


def test_the_verb_writes_a_table_all_values_and_a_page_that_needs_nothing_else(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["spectrum", str(arrays), "--split", "test", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    row = pd.read_parquet(tmp_path / "out" / "spectrum.parquet").iloc[0]
    with np.load(arrays) as stored:
        expected = spectrum(stored["features"][stored["split"] == "test"])
    assert row["sve"] == pytest.approx(expected.sve)
    assert (row["samples"], row["width"], row["model"]) == (30, 5, "features")
    values = pd.read_parquet(tmp_path / "out" / "singular_values.parquet")
    np.testing.assert_allclose(values["singular_value"], expected.values)
    page = (tmp_path / "out" / "spectrum.html").read_text()
    assert "<svg" in page
    assert "$" not in page  # matplotlib's own labels of logarithms are formulas
    assert "http" not in page.replace("http-equiv", "")
    assert f"{expected.sve:.3f}" in page
    assert "some" in capsys.readouterr().out


def test_what_the_head_of_a_run_makes_of_features_stands_beside_them(arrays: Path, tmp_path: Path) -> None:
    short = {"method.probe.epochs": 2, "method.probe.min_steps": 0}
    run = fit(arrays, out=tmp_path / "run", method="nmtune", settings=short, quiet=True)
    done = study([arrays, arrays], out=tmp_path / "out", runs=[run.path], preset="paper")
    assert list(done.table["model"]) == ["features", "run", "features", "run"]
    assert done.table["sve"].nunique() == 2


def test_a_split_that_is_not_there_and_a_missing_model_are_refused_in_one_sentence(
    arrays: Path, tmp_path: Path
) -> None:
    x = {"text": ["a", "b"], "label": [0, 1]}
    with pytest.raises(UserError, match="nothing to measure: name a --model or a --run"):
        study([x], out=tmp_path / "out")
    with pytest.raises(UserError, match="has no test split"):
        study([({"features": np.eye(4), "label": np.arange(4) % 2})], out=tmp_path / "out", split="test")
