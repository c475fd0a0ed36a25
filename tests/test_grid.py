"""Test the runner of study cells: records, failures, resumption and refused changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cleantune.errors import UserError
from cleantune.studies.grid import (
    DONE,
    FAILED,
    MAX_REASON,
    RECORD,
    TRACEBACK,
    Grid,
    folder_name,
    one_sentence,
    open_study,
    read_record,
    refuse_changes,
)
from cleantune.utils.console import Console


@dataclass(frozen=True)
class Cell:
    """A cell with a name and a kind."""

    folder: str
    kind: str = "any"

    @property
    def title(self) -> str:
        """Name in progress lines."""
        return self.folder


CELLS = (Cell("a"), Cell("b"), Cell("c"))


def run_all(folder: Path, fails: str = "", error: Exception | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Run the cells and return the names of the computed ones and all records."""
    grid, computed = Grid(folder, CELLS, Console(quiet=True)), []

    def compute(path: Path) -> dict[str, Any]:
        computed.append(path.name)
        if path.name == fails:
            raise error or RuntimeError("no memory\nleft")
        return {"value": len(computed)}

    records = [grid.run(cell, compute, str, {"noise": 0.4}) for cell in CELLS]
    return computed, records


def test_grid_skips_finished_cells(tmp_path: Path) -> None:
    computed, records = run_all(tmp_path)
    again, same = run_all(tmp_path)
    assert computed == ["a", "b", "c"]
    assert again == []
    assert same == records
    assert [record["value"] for record in records] == [1, 2, 3]


def test_grid_records_a_failed_cell_and_runs_the_others(tmp_path: Path) -> None:
    _, records = run_all(tmp_path, fails="b")
    assert [record["status"] for record in records] == [DONE, FAILED, DONE]
    assert records[1]["reason"] == "RuntimeError: no memory left"
    assert records[1]["noise"] == 0.4
    assert "no memory" in (tmp_path / "b" / TRACEBACK).read_text()
    computed, records = run_all(tmp_path)
    assert computed == ["b"], "a failed cell is tried again"
    assert records[1]["status"] == DONE
    assert not (tmp_path / "b" / TRACEBACK).exists()


def test_grid_writes_no_traceback_for_a_user_error(tmp_path: Path) -> None:
    _, records = run_all(tmp_path, fails="c", error=UserError("name a model"))
    assert records[2]["reason"] == "name a model"
    assert not (tmp_path / "c" / TRACEBACK).exists()


def test_grid_does_not_rerun_a_failed_cell_in_one_session(tmp_path: Path) -> None:
    grid = Grid(tmp_path, CELLS, Console(quiet=True))
    calls = []

    def fail(path: Path) -> dict[str, Any]:
        calls.append(path)
        raise RuntimeError

    assert grid.run(CELLS[0], fail, str) == grid.run(CELLS[0], fail, str)
    assert len(calls) == 1


def test_grid_leaves_no_record_of_an_interrupted_cell(tmp_path: Path) -> None:
    grid = Grid(tmp_path, CELLS, Console(quiet=True))

    def interrupt(path: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid.run(CELLS[0], interrupt, str)
    assert not (tmp_path / "a" / RECORD).exists()


def test_grid_removes_the_checkpoint_of_a_finished_cell(tmp_path: Path) -> None:
    grid = Grid(tmp_path, CELLS, Console(quiet=True))

    def compute(path: Path) -> dict[str, Any]:
        (path / "checkpoint").mkdir()
        return {}

    grid.run(CELLS[0], compute, str)
    assert not (tmp_path / "a" / "checkpoint").exists()
    assert read_record(tmp_path / "a")["status"] == DONE


def test_grid_replaces_a_planned_cell(tmp_path: Path) -> None:
    grid = Grid(tmp_path, CELLS, Console(quiet=True))
    grid.replace(CELLS[2], Cell("d"))
    grid.replace(CELLS[1], CELLS[1])
    assert list(grid.pending) == ["a", "b", "d"]
    assert grid.run(Cell("d"), lambda path: {"value": 1}, str)["value"] == 1
    assert list(grid.pending) == ["a", "b"]


def test_seconds_left_needs_an_estimate_or_a_finished_cell(tmp_path: Path) -> None:
    grid = Grid(tmp_path, (Cell("a", "slow"), Cell("b", "fast"), Cell("c", "slow")), Console(quiet=True))
    assert grid.seconds_left() is None
    grid.expected_seconds = {"slow": 100.0, "fast": 1.0}
    assert grid.seconds_left() == 201.0
    grid.run(Cell("b", "fast"), lambda path: {}, str)
    left = grid.seconds_left()
    assert left is not None
    assert left < 200.0, "the fast cell took less than its estimate, which scales the others"


def test_one_sentence_is_one_short_line() -> None:
    assert one_sentence(ValueError("a\n  b")) == "ValueError: a b"
    assert one_sentence(UserError("a b")) == "a b"
    assert one_sentence(KeyError()) == "KeyError: KeyError"
    assert len(one_sentence(ValueError("x" * 1000))) == MAX_REASON


def test_folder_name_is_readable_and_unique() -> None:
    one, other = folder_name(["TURN, tau 0.3", 1], "one"), folder_name(["TURN, tau 0.3", 1], "other")
    assert one.startswith("turn-tau-0.3_1_")
    assert one != other


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"seeds": [0], "data": {"limit": 5}}, r"seeds is \[0\] now and was \[0, 1\]"),
        ({"seeds": [0, 1], "data": {"limit": 6}}, r"data\.limit is 6 now and was 5"),
        ({"seeds": [0, 1], "data": {"limit": 5}, "tune": True}, "tune is True now and was None"),
        ({"seeds": (0, 2), "data": {"limit": 5}}, r"seeds\[1\] is 2 now and was 1"),
    ],
)
def test_refuse_changes_names_the_first_changed_key(now: dict[str, Any], message: str) -> None:
    stored = {"seeds": [0, 1], "data": {"limit": 5}}
    refuse_changes({"seeds": (0, 1), "data": {"limit": 5}}, stored)
    with pytest.raises(UserError, match=f"--resume: {message}"):
        refuse_changes(now, stored)


def test_open_study_resumes_only_the_same_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"matrix": {"seeds": [0]}}
    open_study(out, "matrix", settings, resume=False, overwrite=False, record={"points": [1]})
    open_study(out, "matrix", settings, resume=True, overwrite=False, record={"points": [1]})
    with pytest.raises(UserError, match=r"record\.points\[0\] is 2 now and was 1"):
        open_study(out, "matrix", settings, resume=True, overwrite=False, record={"points": [2]})
    with pytest.raises(UserError, match="is not empty"):
        open_study(out, "matrix", settings, resume=False, overwrite=False)
    open_study(out, "matrix", {"matrix": {"seeds": [1]}}, resume=False, overwrite=True)
    assert "seeds = [\n    1,\n]" in (out / "config.toml").read_text()
