from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.config.run import config_to_dict, configure, load_toml, read_config
from cleantune.config.schema import MISSING, describe_fields, from_dict, merge, nest, parse_assignment, to_dict
from cleantune.errors import UserError
from cleantune.methods import METHODS
from cleantune.methods.protocol import Categorical, MLPHeadConfig, Range, Stage
from cleantune.studies import transfer
from cleantune.studies.evaluate import read_class_map
from cleantune.studies.turn_paper import experiment


@dataclass(frozen=True)
class Sample:
    """A record with one field of every kind."""

    rate: Annotated[float, Range(0.0, 1.0)] = 0.5
    """How much."""
    count: int | None = None
    """How many."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    on: bool = False
    """Whether."""
    stage: Stage = Stage()
    """How long."""


def test_describe_fields_gives_type_default_range_and_help() -> None:
    rate, count, kind, on, _ = describe_fields(Sample)
    assert (rate.name, rate.default, rate.allowed, rate.help) == ("rate", 0.5, Range(0.0, 1.0), "How much.")
    assert kind.allowed == Categorical(("a", "b"))
    assert count.help == "How many."
    assert on.type is bool


samples = st.builds(
    Sample,
    rate=st.floats(0, 1),
    count=st.none() | st.integers(),
    kind=st.sampled_from(["a", "b"]),
    on=st.booleans(),
    stage=st.builds(Stage, st.integers(0, 9)),
)


@given(samples)
def test_to_dict_is_the_inverse_of_from_dict(record: Sample) -> None:
    assert from_dict(Sample, to_dict(record), "x") == record


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rat": 1}, 'unknown key "x.rat"; did you mean "rate"'),
        ({"rate": 2.0}, 'key "x.rate" is 2.0, outside 0 to 1'),
        ({"rate": "much"}, "key \"x.rate\" is 'much'; it must be a number"),
        ({"count": 1.5}, 'key "x.count" is 1.5; it must be a whole number'),
        ({"on": 1}, "true or false"),
        ({"kind": "c"}, 'key "x.kind" is "c"'),
        ({"stage": {"epoch": 3}}, 'unknown key "x.stage.epoch"; did you mean "epochs"'),
        ({"stage": 3}, 'key "x.stage" is a table'),
    ],
)
def test_from_dict_names_the_key_of_a_wrong_value(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(Sample, table, "x")
    assert message in str(error.value)


def test_from_dict_keeps_values_that_a_sub_table_omits() -> None:
    start = Sample(stage=Stage(epochs=7, batch_size=32))
    out = from_dict(Sample, {"stage": {"epochs": 9}}, "x", start)
    assert out.stage == Stage(epochs=9, batch_size=32)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("method.tau=0.7", ["method", "tau"], 0.7),
        ("a.b=true", ["a", "b"], True),
        ("a=quantile:0.1", ["a"], "quantile:0.1"),
        ("a = [1, 2]", ["a"], [1, 2]),
    ],
)
def test_parse_assignment_reads_toml_or_text(text: str, path: list[str], value: object) -> None:
    assert parse_assignment(text) == (path, value)


def test_parse_assignment_refuses_text_without_equals_sign() -> None:
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_assignment("method.tau")


def test_merge_keeps_keys_of_both_tables() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, nest(["a", "b"], 5)) == {"a": {"b": 5, "c": 2}, "d": 3}


@pytest.mark.parametrize("name", METHODS)
def test_method_fields_have_help_default_and_range(name: str) -> None:
    for cls, path in ((METHODS[name], name), (Stage, "stage"), (MLPHeadConfig, "reshape")):
        for field in describe_fields(cls):
            assert field.help, f"{path}.{field.name} has no comment"
            assert field.default is not MISSING, f"{path}.{field.name} has no default"
            free = field.type in (bool, str, Stage, MLPHeadConfig)
            assert free or field.allowed is not None, f"{path}.{field.name} has no range"


@pytest.mark.parametrize("name", METHODS)
def test_config_to_dict_round_trips_every_preset(name: str) -> None:
    for preset in [None, *METHODS[name].presets]:
        table = {"data": {"data": "x.csv"}, "method": {"name": name} | ({"preset": preset} if preset else {})}
        config = configure(table, "vit")
        assert configure(config_to_dict(config), "vit").method == config.method


def test_configure_ranks_settings_over_preset_over_default() -> None:
    table = {"data": {"data": "x.csv"}, "method": {"name": "turn", "preset": "paper", "tau": 0.9}}
    method = configure(table, "vit").method
    assert (method.tau, method.balance, method.probe.optimizer) == (0.9, "strict", "sgd")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "turm"}, 'did you mean "turn"'),
        ({"taau": 0.5}, 'did you mean "tau"'),
        ({"name": "turn", "preset": "papr"}, 'did you mean "paper"'),
        ({"preset": "paper"}, "method robust has no presets"),
        ({"tau": 1.5}, "outside 0 to 1"),
    ],
)
def test_configure_suggests_the_nearest_name(method: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure({"data": {"data": "x.csv"}, "method": method})


@pytest.mark.parametrize("read", [read_config, load_toml, read_class_map, transfer.read, experiment.read])
def test_toml_readers_name_a_missing_or_damaged_file(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    torn = tmp_path / "torn.toml"
    torn.write_text("a = 1\nb = c\n")
    for path in (tmp_path / "nowhere.toml", tmp_path, torn / "inside.toml"):
        with pytest.raises(UserError, match=rf"^(no|there is no) .*{re.escape(str(path))}"):
            read(path)
    with pytest.raises(UserError, match=rf"^{re.escape(str(torn))} is not TOML: .*line 2"):
        read(torn)
    torn.write_bytes(b"a = '\xff'")
    with pytest.raises(UserError, match="is not TOML"):
        read(torn)


def test_read_config_omits_the_record_of_the_past_run(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[run]\nnoise_seed = 1\n[record]\nfingerprint = "f"\n')
    assert read_config(path) == {"run": {"noise_seed": 1}}
    assert load_toml(path) == {"run": {"noise_seed": 1}, "record": {"fingerprint": "f"}}


def test_configure_takes_scope_head_for_features() -> None:
    table = {"data": {"data": "x.npz"}}
    assert configure(table, features_only=True).method.scope == "head"
    assert configure(table).method.scope == "all"
