"""The page that shows how a method is added: its code runs, is short, and keeps the contract."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from test_contract import BACKBONE_RATE, _one_thread, blobs, loop_on, trained  # noqa: F401 - a fixture

from cleantune.config.run import configure
from cleantune.config.schema import describe_fields
from cleantune.methods import METHODS
from cleantune.methods.protocol import Scope, Stage

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The page's code as a module of its own, and its line in the table."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "bootstrapping.py"
    path.write_text(code)
    module = ModuleType("bootstrapping")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "bootstrapping", module)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(code, str(path), "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, "bootstrapping", module.Bootstrapping)  # type: ignore[attr-defined]
    return module.Bootstrapping  # type: ignore[attr-defined]


def test_the_example_has_fewer_than_forty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) < 40


def test_the_example_is_not_part_of_the_package() -> None:
    assert "bootstrapping" not in METHODS


@pytest.mark.parametrize("scope", get_args(Scope))
def test_the_example_solves_a_clean_problem_in_both_scopes(method: Any, scope: Scope) -> None:
    stage = Stage(epochs=8, learning_rate=1e-2, batch_size=32)
    problem = blobs(0.0, spread=0.3)
    _, rows = trained(problem, method(scope=scope, probe=stage, tune=replace(stage, epochs=5)), loop_on(problem, scope))
    assert rows[-1]["accuracy_test"] > 0.97


def test_the_example_is_configurable_and_checks_its_range(method: Any) -> None:
    from cleantune.errors import UserError

    config = configure({"method": {"name": "bootstrapping", "scope": "all", "beta": 0.5}, "data": {"data": "x"}})
    assert config.method == method(scope="all", beta=0.5)
    assert all(field.help for field in describe_fields(method))
    with pytest.raises(UserError, match=r"method\.beta"):
        configure({"method": {"name": "bootstrapping", "beta": 2.0}, "data": {"data": "x"}})
