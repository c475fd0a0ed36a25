"""Output of a run."""

from __future__ import annotations

import io

import pytest

from cleantune.utils import console as module
from cleantune.utils.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_info_prints_to_standard_error_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Console().info("one")
    Console(quiet=True).info("two")
    assert capsys.readouterr() == ("", "one\n")


def test_row_prints_the_header_once_and_skips_missing_values() -> None:
    out = io.StringIO()
    console = Console(out=out)
    for epoch in range(2):
        console.row({"phase": "probe", "epoch": epoch, "loss": 0.5, "auroc": None, "other": 1})
    header, first, second = out.getvalue().splitlines()
    assert header.split()[:3] == ["phase", "epoch", "loss"]
    assert first.split() == ["probe", "0", "0.500"]
    assert second.split() == ["probe", "1", "0.500"]
    assert len(header) == len(first) == len(second)


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_progress_prints_nothing_for_short_tasks(out: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(out=out).progress("reading") as update:
        update(1, 2)
        update(2, 2)
    assert out.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_progress_draws_a_bar_for_long_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PROGRESS_DELAY", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Console(out=Terminal()).progress("reading") as update:
        update(1, 2)
    assert "reading" in capsys.readouterr().err
