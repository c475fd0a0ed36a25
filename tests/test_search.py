"""Test search spaces and the ranking of trials, which need no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleantune.errors import UserError
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical, Range, Scope
from cleantune.studies.search.ranking import importances, rank, sentences
from cleantune.studies.search.space import Dimension, points_of, scale_values, space_of


def space(name: str = "gce", scope: Scope = "head", chosen: Any = None) -> dict[str, Dimension]:
    """Return the dimensions of a method by key."""
    method = replace(METHODS[name](), scope=scope)  # type: ignore[call-arg]
    return {d.key: d for d in space_of(method, method.phases(), chosen)}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scope", ["head", "all"])
def test_space_of_every_method_is_within_field_ranges(name: str, scope: Scope) -> None:
    from cleantune.config.run import configure
    from cleantune.config.schema import merge, nest

    dimensions = space(name, scope)
    assert any(key.endswith("learning_rate") for key in dimensions)
    points = points_of(list(dimensions.values()), 20, 0, scope)
    assert len(points) == 19
    for point in points:  # configure refuses a value outside its field's range
        table: dict[str, Any] = {"data": {"data": "x"}, "method": {"name": name, "scope": scope}}
        for key, value in point.items():
            table = merge(table, nest(key.split("."), value))
        configure(table)


def test_space_omits_the_rate_of_a_frozen_backbone() -> None:
    assert "method.tune.backbone_learning_rate" in space("gce", "all")
    assert not any("backbone" in key for key in space("gce", "head"))
    assert not any("tune" in key for key in space("gce", "head"))


def test_paper_space_is_table_7_with_a_complete_grid() -> None:
    found = space(chosen="paper")
    assert {key.split(".")[-1] for key in found} == {"learning_rate", "optimizer", "weight_decay", "batch_size"}
    grid = points_of(list(found.values()), None, 0, "head")
    assert len(grid) == 5 * 2 * 5 * 3
    assert len({tuple(p.values()) for p in grid}) == 150
    part = points_of(list(found.values()), 8, 0, "head")
    assert len(part) == 7
    assert all(p in grid for p in part)
    assert len(points_of(list(found.values()), None, 0, "all")) == 15
    (rate,) = [d for d in space("gce", "all", "paper").values() if d.linked_keys]
    assert rate.linked_keys == ("method.tune.backbone_learning_rate",)


def test_space_file_replaces_adds_and_fixes_ranges(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        "q = 0.5\n[method.probe]\nlearning_rate = {low = 1e-4, high = 1e-3, log = true}\n"
        'schedule = ["constant", "cosine"]\n'
    )
    found = space(chosen=str(path))
    assert found["method.probe.learning_rate"].range == Range(1e-4, 1e-3, log=True)
    assert found["method.probe.schedule"].range == Categorical(("constant", "cosine"))
    assert found["method.q"].range == Categorical((0.5,))
    assert "method.probe.weight_decay" in found
    path.write_text("only = true\n" + path.read_text())
    assert set(space(chosen=str(path))) == {"method.q", "method.probe.learning_rate", "method.probe.schedule"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"method": {"tau": [0.1]}}, 'unknown key "method.tau"'),
        ({"method": {"q": [0.5, 1.5]}}, "1.5 is outside 0 to 1"),
        ({"method": {"q": {"low": 0.5}}}, "write {low"),
        ({"method": {"q": {"low": 0.9, "high": 0.5}}}, "are no range"),
        ({"method": {"probe": {"optimizer": ["adam"]}}}, "'adam' is none of adamw, sgd"),
        ({"method": {"q": []}}, "has no value"),
        ({"only": True}, "no field varies"),
    ],
)
def test_space_of_refuses_a_bad_space_in_one_sentence(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("{", r"\{")):
        space(chosen=table)


@settings(max_examples=50)
@given(st.floats(0, 1), st.sampled_from([Range(1e-5, 1e-2, log=True), Range(0.3, 0.9), Categorical((32, 64, 128))]))
def test_dimension_values_are_in_range(share: float, within: Range | Categorical) -> None:
    value = Dimension("method.x", within).at(share)
    assert value in within.values if isinstance(within, Categorical) else within.low <= value <= within.high


def test_points_are_seeded_and_cover_ranges_evenly() -> None:
    dimensions = [Dimension("method.a", Range(1e-5, 1e-1, log=True)), Dimension("method.b", Range(0.0, 1.0))]
    points = points_of(dimensions, 41, 3, "head")
    assert points == points_of(dimensions, 41, 3, "head")
    assert points != points_of(dimensions, 41, 4, "head")
    decades = np.histogram(np.log10([p["method.a"] for p in points]), bins=4, range=(-5, -1))[0]
    assert decades.min() >= 8


def test_rank_keeps_the_default_among_equal_trials() -> None:
    """Rank forty trials of one true accuracy; the default is kept at least 95 of 100 times."""
    rng = np.random.default_rng(0)
    num_replaced = 0
    for _ in range(200):
        shared = rng.random(500)
        values = ((shared + 0.3 * rng.random((40, 500))) < 0.8).astype(float)
        found = rank(values, values.mean(1))
        num_replaced += found.beats_default
        assert found.best in found.tied
    assert num_replaced <= 10


def test_rank_chooses_a_trial_that_beats_noise() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((8, 2000)) < np.array([0.5] * 7 + [0.6])[:, None]).astype(float)
    found = rank(values, values.mean(1))
    assert found.chosen == found.best == 7
    assert found.tied == (7,)
    assert found.reliability > 0.5
    words = sentences(found, dict(enumerate(values.mean(1))), is_fraction=True)
    assert words[0].startswith("trial 7 is best")


def test_rank_uses_errors_of_paired_differences() -> None:
    """Compare two trials that differ on few samples, although the error of each is far larger."""
    values = np.tile((np.arange(1000) % 2 == 0).astype(float), (2, 1))
    values[1, :20] = 1.0
    found = rank(values, values.mean(1))
    assert found.error > 0.015
    assert found.chosen == 1
    assert rank(values[:, ::-1], values.mean(1)) == found


def test_sentences_without_a_winner_name_remedies() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((5, 100)) < 0.5).astype(float)
    values[0] = 0.0
    values[0, :45] = 1.0
    found = rank(values, values.mean(1))
    text = " ".join(sentences(found, dict(enumerate(values.mean(1))), is_fraction=True))
    assert not found.beats_default
    assert "--validation-fraction" in text


def test_importances_find_what_matters_or_return_none() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 3))
    found = importances(x, 3 * x[:, 1] + 0.1 * x[:, 0])
    assert found is not None
    assert found.argmax() == 1
    assert found[1] > 0.8
    assert found.sum() == pytest.approx(1)
    assert importances(x[:7], x[:7, 0]) is None
    assert importances(x, np.zeros(60)) is None
    assert importances(x, rng.random(60)) is None


def test_scale_values_maps_to_unit_interval() -> None:
    log = Dimension("method.a", Range(1e-4, 1e-2, log=True))
    assert scale_values(log, [1e-4, 1e-3, 1e-2]).tolist() == pytest.approx([0, 0.5, 1])
    words = Dimension("method.b", Categorical(("sgd", "adamw")))
    assert scale_values(words, ["sgd", "adamw", "sgd"]).tolist() == [0, 1, 0]
    assert scale_values(log, [1e-3, 1e-3]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": "test"}, '--objective "test"'),
        ({"trials": 1}, "there must be at least two"),
        ({"workers": 2}, "a search runs trials in parallel"),
        ({"validation_fraction": 0.0}, "there is none: set --validation-fraction"),
        ({"space": "nowhere.toml"}, "no configuration file nowhere.toml"),
    ],
)
def test_search_refuses_bad_arguments_before_running(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    import cleantune

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(UserError, match=words):
        cleantune.search((x, np.arange(40) % 2), method="ce", out=tmp_path / "out", quiet=True, **given)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_search_without_ray_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import cleantune

    monkeypatch.setitem(sys.modules, "ray", None)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(UserError, match=r"pip install 'cleantune\[ray\]'"):
        cleantune.search((x, np.arange(40) % 2), method="ce", out=tmp_path / "out", quiet=True)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"pip install 'cleantune\[ray\]'"):
        cleantune.fit((x, np.arange(40) % 2), method="ce", out=tmp_path / "run", workers=2, quiet=True)
