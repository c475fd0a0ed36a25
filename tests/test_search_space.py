"""What a search draws from, and what it makes of what it finds; no Ray is needed here."""

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
from cleantune.studies.search.space import Dimension, points_of, scaled, space_of


def space(name: str = "gce", scope: Scope = "head", chosen: Any = None) -> dict[str, Dimension]:
    """The dimensions of a method by key."""
    method = replace(METHODS[name](), scope=scope)  # type: ignore[call-arg]
    return {d.key: d for d in space_of(method, method.phases(), chosen)}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scope", ["head", "all"])
def test_every_method_has_a_space_within_what_its_fields_allow(name: str, scope: Scope) -> None:
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


def test_the_rate_of_a_backbone_that_does_not_learn_is_not_searched() -> None:
    assert "method.tune.backbone_learning_rate" in space("gce", "all")
    assert not any("backbone" in key for key in space("gce", "head"))
    assert not any("tune" in key for key in space("gce", "head"))


def test_the_paper_s_space_is_table_7_and_its_grid_is_tried_whole_on_cached_features() -> None:
    found = space(chosen="paper")
    assert {key.split(".")[-1] for key in found} == {"learning_rate", "optimizer", "weight_decay", "batch_size"}
    grid = points_of(list(found.values()), None, 0, "head")
    assert len(grid) == 5 * 2 * 5 * 3
    assert len({tuple(p.values()) for p in grid}) == 150
    part = points_of(list(found.values()), 8, 0, "head")
    assert len(part) == 7
    assert all(p in grid for p in part)
    assert len(points_of(list(found.values()), None, 0, "all")) == 15
    (rate,) = [d for d in space("gce", "all", "paper").values() if d.also]
    assert rate.also == ("method.tune.backbone_learning_rate",)


def test_a_file_narrows_widens_and_holds(tmp_path: Path) -> None:
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
        ({"only": True}, "nothing is left to vary"),
    ],
)
def test_a_bad_space_is_one_sentence(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("{", r"\{")):
        space(chosen=table)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.sampled_from([Range(1e-5, 1e-2, log=True), Range(0.3, 0.9), Categorical((32, 64, 128))]))
def test_a_draw_lies_in_its_range(share: float, within: Range | Categorical) -> None:
    value = Dimension("method.x", within).at(share)
    assert value in within.values if isinstance(within, Categorical) else within.low <= value <= within.high


def test_the_same_seed_draws_the_same_and_fills_each_range_evenly() -> None:
    dimensions = [Dimension("method.a", Range(1e-5, 1e-1, log=True)), Dimension("method.b", Range(0.0, 1.0))]
    points = points_of(dimensions, 41, 3, "head")
    assert points == points_of(dimensions, 41, 3, "head")
    assert points != points_of(dimensions, 41, 4, "head")
    decades = np.histogram(np.log10([p["method.a"] for p in points]), bins=4, range=(-5, -1))[0]
    assert decades.min() >= 8


def test_alike_trials_crown_no_winner() -> None:
    """Forty trials of one true accuracy: by luck one is highest, and it is not taken (95 of 100 times at least)."""
    rng = np.random.default_rng(0)
    crowned = 0
    for _ in range(200):
        shared = rng.random(500)
        values = ((shared + 0.3 * rng.random((40, 500))) < 0.8).astype(float)
        found = rank(values, values.mean(1))
        crowned += found.crowned
        assert found.best in found.tied
    assert crowned <= 10


def test_a_trial_that_is_better_than_noise_is_taken() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((8, 2000)) < np.array([0.5] * 7 + [0.6])[:, None]).astype(float)
    found = rank(values, values.mean(1))
    assert found.chosen == found.best == 7
    assert found.tied == (7,)
    assert found.reliability > 0.5
    words = sentences(found, dict(enumerate(values.mean(1))), points=True)
    assert words[0].startswith("trial 7 is best")


def test_standard_errors_are_those_of_the_paired_difference() -> None:
    """Two trials that differ on few samples are told apart although each is uncertain by far more."""
    values = np.tile((np.arange(1000) % 2 == 0).astype(float), (2, 1))
    values[1, :20] = 1.0
    found = rank(values, values.mean(1))
    assert found.error > 0.015
    assert found.chosen == 1
    assert rank(values[:, ::-1], values.mean(1)) == found


def test_the_words_for_no_winner_name_the_remedies() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((5, 100)) < 0.5).astype(float)
    values[0] = 0.0
    values[0, :45] = 1.0
    found = rank(values, values.mean(1))
    said = " ".join(sentences(found, dict(enumerate(values.mean(1))), points=True))
    assert not found.crowned
    assert "--validation-fraction" in said


def test_importance_finds_what_matters_and_is_silent_where_nothing_does() -> None:
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


def test_values_are_scaled_for_plots() -> None:
    log = Dimension("method.a", Range(1e-4, 1e-2, log=True))
    assert scaled(log, [1e-4, 1e-3, 1e-2]).tolist() == pytest.approx([0, 0.5, 1])
    words = Dimension("method.b", Categorical(("sgd", "adamw")))
    assert scaled(words, ["sgd", "adamw", "sgd"]).tolist() == [0, 1, 0]
    assert scaled(log, [1e-3, 1e-3]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": "test"}, '--objective "test"'),
        ({"trials": 1}, "there must be two at the least"),
        ({"workers": 2}, "a search runs its trials side by side"),
        ({"validation_fraction": 0.0}, "there is none: set --validation-fraction"),
        ({"space": "nowhere.toml"}, "no configuration file nowhere.toml"),
    ],
)
def test_a_search_that_cannot_be_is_one_sentence_before_anything_runs(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    import cleantune

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(UserError, match=words):
        cleantune.search((x, np.arange(40) % 2), method="ce", out=tmp_path / "out", quiet=True, **given)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_without_ray_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import cleantune

    monkeypatch.setitem(sys.modules, "ray", None)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(UserError, match=r"pip install 'cleantune\[ray\]'"):
        cleantune.search((x, np.arange(40) % 2), method="ce", out=tmp_path / "out", quiet=True)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"pip install 'cleantune\[ray\]'"):
        cleantune.fit((x, np.arange(40) % 2), method="ce", out=tmp_path / "run", workers=2, quiet=True)
