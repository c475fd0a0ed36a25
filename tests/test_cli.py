"""The command line: help, errors, options, and the state of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import cleantune
from cleantune.cli import process
from cleantune.cli.main import VERBS, cli, main
from cleantune.cli.options import HIDDEN, drop_unset
from cleantune.config.data import DataConfig
from cleantune.config.run import ModelConfig, RunConfig
from cleantune.config.schema import describe_fields
from cleantune.errors import UserError
from cleantune.methods import METHODS

NAMES = [verb for group in VERBS.values() for verb in group]
FAST = ["method.probe.epochs=2", "method.probe.min_steps=0"]


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what `configure_process` changes."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of three separable classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    path = tmp_path_factory.mktemp("cli") / "data.npz"
    np.savez(path, features=(4 * np.eye(3)[y] + rng.normal(size=(120, 3))).astype(np.float32), label=y)
    return path


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    cleantune.fit(data, method="ce", out=data.parent / "run", settings=FAST, quiet=True)
    return data.parent / "run"


def command(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


def exit_code(args: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(args)
    return int(str(left.value.code))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["fit", "nowhere.csv", "--model", "m", "--out", "X"], "nowhere"),
        (["fit", "nowhere.npz", "--method", "turm", "--out", "X"], 'did you mean "turn"'),
        (["fit", "nowhere.npz", "--set", "method.taau=1", "--out", "X"], 'did you mean "tau"'),
        (["fit", "--out", "X"], "there are no data"),
        (["fitt"], 'did you mean "fit"'),
        (["fit", "a", "--lable", "b", "--out", "X"], "--label"),
        (["predict", "nowhere", "data"], "no run nowhere"),
        (["predict", "nowhere", "data", "--out", "table.xlsx"], ".parquet or .csv"),
        (["methods", "turm"], 'did you mean "turn"'),
        (["compare", "nowhere.npz", "--seeds", "three", "--out", "X"], "--seeds three"),
    ],
)
def test_user_error_is_one_sentence_with_exit_code_two(
    args: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([str(tmp_path / "out") if a == "X" else a for a in args]) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


def test_verbose_prints_the_traceback_of_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["fit", "nowhere.csv", "--model", "m", "--out", str(tmp_path / "out"), "-v"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "cleantune: " in printed


def test_interrupt_exits_with_130_and_names_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any, **values: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("cleantune.pipeline.fit.fit", interrupt)
    assert exit_code(["fit", "data.npz", "--out", "x"]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("verb", NAMES)
def test_help_of_a_verb_states_every_default(verb: str) -> None:
    for parameter in command(verb).params:
        if isinstance(parameter, click.Option):
            assert "default" in (parameter.help or "") or parameter.show_default, f"{verb} --{parameter.name}"


@pytest.mark.parametrize("verb", NAMES)
def test_summary_of_a_verb_is_an_imperative_sentence(verb: str) -> None:
    first = (command(verb).help or "").splitlines()[0]
    assert first[0].isupper()
    assert not first.split()[0].endswith(("s", "ing", "ed"))
    assert next(group[verb] for group in VERBS.values() if verb in group).endswith(".")


@pytest.mark.parametrize("verb", ["fit", "plan", "audit", "compare", "search", "spectrum", "pretrain"])
def test_options_have_the_order_of_the_fields(verb: str) -> None:
    fields = [field.name for config in (DataConfig, ModelConfig, RunConfig) for field in describe_fields(config)]
    names = [parameter.name for parameter in command(verb).params if parameter.name not in HIDDEN]
    generated = [name for name in names if name in fields]
    assert generated == [name for name in fields if name in generated]
    assert {"text", "split_seed", "backend"} <= set(generated)


def test_quiet_and_verbose_have_short_forms() -> None:
    options = {flag for parameter in command("fit").params for flag in parameter.opts}
    assert {"--quiet", "-q", "--verbose", "-v"} <= options
    assert "--silent" not in options


def test_help_lists_all_verbs_by_group() -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    assert shown.exit_code == 0
    assert all(title in shown.output for title in VERBS)
    assert all(f"  {verb} " in shown.output for verb in NAMES)


def test_help_imports_no_heavy_library() -> None:
    code = "import sys; from cleantune.cli.main import main; main(['--help'])"
    heavy = "print(sorted({'torch', 'pandas', 'numpy', 'transformers', 'jinja2', 'rich'} & set(sys.modules)))"
    text = f"import atexit, sys\natexit.register(lambda: {heavy})\n{code}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_import_switches_telemetry_off() -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    code = f"import cleantune, os; print([os.environ[name] for name in {names}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "['1', '1', '0']"


def test_public_names_are_listed_and_importable() -> None:
    assert {"fit", "audit", "load", "plan", "compare", "search"} <= set(dir(cleantune))
    assert all(getattr(cleantune, name) is not None for name in cleantune.__all__)
    assert callable(cleantune.audit)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        cleantune.fitt  # noqa: B018


def test_configure_process_keeps_a_verbosity_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    process.configure_process()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert not process.is_verbose()


def test_methods_lists_one_line_per_method() -> None:
    lines = CliRunner().invoke(cli, ["methods"]).output.splitlines()
    assert [line.split()[0] for line in lines[: len(METHODS)]] == list(METHODS)
    assert len(lines) < len(METHODS) + 4


def test_methods_with_a_name_lists_its_settings() -> None:
    shown = CliRunner().invoke(cli, ["methods", "robust"]).output
    assert "presets: " in shown
    assert all(f"method.{field.name}" in shown for field in describe_fields(METHODS["robust"]))


def test_methods_as_json_has_ranges_and_defaults() -> None:
    listed: dict[str, Any] = json.loads(CliRunner().invoke(cli, ["methods", "--json"]).output)
    assert {"robust", "turn", "ce", "gce"} <= set(listed)
    assert any(key == "method.tau" and "0 to 1" in allowed for key, _, allowed, _ in listed["turn"])
    assert list(json.loads(CliRunner().invoke(cli, ["methods", "ce", "--json"]).output)) == ["ce"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_table(run: Path, data: Path, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"predicted{suffix}"
    shown = CliRunner().invoke(cli, ["predict", str(run), str(data), "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    read: dict[str, Callable[..., pd.DataFrame]] = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    assert list(read[suffix](out)) == ["id", "predicted_label", "probability"]


def test_fit_prints_key_numbers_and_the_next_steps(data: Path, tmp_path: Path) -> None:
    args = ["fit", str(data), "--method", "ce", "--out", str(tmp_path / "run"), "-q"]
    shown = CliRunner().invoke(cli, [*args, *(word for pair in FAST for word in ("--set", pair))])
    assert shown.exit_code == 0, shown.output
    for text in ("validation accuracy", "label issues", "report.html", "cleantune review"):
        assert text in shown.stdout
    assert shown.stderr == ""


def test_drop_unset_keeps_false_and_zero() -> None:
    assert drop_unset({"a": None, "b": False, "c": 0}) == {"b": False, "c": 0}


def test_user_error_is_an_exception_with_its_sentence() -> None:
    assert str(UserError("x.csv has no column label")) == "x.csv has no column label"
