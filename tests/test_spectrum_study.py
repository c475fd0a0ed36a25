"""Test studies of spectra: table, values and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cleantune.cli.main import main
from cleantune.errors import UserError
from cleantune.functional.spectrum import spectrum
from cleantune.pipeline.fit import fit
from cleantune.studies.spectrum import measure_spectra


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    r = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (r.normal(size=(3, 5))[y] + r.normal(size=(120, 5))).astype(np.float32)
    split = np.where(np.arange(120) % 4 == 0, "test", "train")
    np.savez(tmp_path / "some.npz", features=x, label=y, split=split)
    return tmp_path / "some.npz"


def test_spectrum_verb_writes_table_values_and_page(
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
    assert "$" not in page  # matplotlib labels logarithms by formulas
    assert "http" not in page.replace("http-equiv", "")
    assert f"{expected.sve:.3f}" in page
    assert "some" in capsys.readouterr().out


def test_measure_spectra_includes_embeddings_of_runs(arrays: Path, tmp_path: Path) -> None:
    short = {"method.probe.epochs": 2, "method.probe.min_steps": 0}
    run = fit(arrays, out=tmp_path / "run", method="nmtune", settings=short, quiet=True)
    done = measure_spectra([arrays, arrays], out=tmp_path / "out", runs=[run.path], preset="paper")
    assert list(done.table["model"]) == ["features", "run", "features", "run"]
    assert done.table["sve"].nunique() == 2


def test_measure_spectra_refuses_a_missing_split_or_model(arrays: Path, tmp_path: Path) -> None:
    x = {"text": ["a", "b"], "label": [0, 1]}
    with pytest.raises(UserError, match="nothing to measure: name a --model or a --run"):
        measure_spectra([x], out=tmp_path / "out")
    with pytest.raises(UserError, match="has no test split"):
        measure_spectra([({"features": np.eye(4), "label": np.arange(4) % 2})], out=tmp_path / "out", split="test")
