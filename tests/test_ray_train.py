"""Workers of a distributed run, without Ray: their messages, and what they leave for the next group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cleantune.errors import UserError
from cleantune.pipeline import ray_train
from cleantune.storage.files import read_json
from cleantune.utils.console import Console
from cleantune.utils.worker import WorkerEnvironment

Work = Callable[[Console], None]


@pytest.fixture
def run_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Work], None]:
    """A function that runs one of two workers."""

    def run(rank: int, work: Work) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ray_train.run_worker({"job": ray_train.WorkerJob(work, tmp_path, WorkerEnvironment(str(tmp_path), None))})

    return run


def greet(console: Console) -> None:
    """Print a line."""
    console.info("hello")


def fail(console: Console) -> None:
    """Raise a user error."""
    raise UserError("no such column")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_first_group_reports_no_lost_worker(run_rank, tmp_path: Path, order: tuple[int, int]) -> None:
    for rank in order:
        run_rank(rank, greet)
    assert (tmp_path / ray_train.CONSOLE_FILE).read_text() == "hello\n"


def test_second_group_reports_the_lost_worker_once(run_rank, tmp_path: Path) -> None:
    run_rank(0, greet)
    run_rank(1, greet)
    run_rank(0, greet)
    lines = (tmp_path / ray_train.CONSOLE_FILE).read_text().splitlines()
    assert lines == ["hello", "a worker was lost: all continue from the last checkpoint", "hello"]


def test_user_error_is_recorded_and_stops_later_workers(run_rank, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ray_train, "ERROR_TIMEOUT", 0.2)
    with pytest.raises(UserError, match="no such column"):
        run_rank(1, fail)
    assert read_json(tmp_path / ray_train.ERROR_FILE)["reason"] == "no such column"
    run_rank(0, greet)
    assert not (tmp_path / ray_train.CONSOLE_FILE).exists()


def test_user_error_of_all_ranks_is_not_raised(run_rank, tmp_path: Path) -> None:
    (tmp_path / f"{ray_train.ERROR_FILE}.0").touch()
    run_rank(1, fail)
    assert read_json(tmp_path / ray_train.ERROR_FILE)["reason"] == "no such column"


def test_worker_enters_the_environment_of_its_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEANTUNE_CACHE", str(tmp_path / "cache"))
    captured = WorkerEnvironment.capture()
    monkeypatch.chdir("/")
    monkeypatch.delenv("CLEANTUNE_CACHE")
    captured.enter()
    assert WorkerEnvironment.capture() == captured
