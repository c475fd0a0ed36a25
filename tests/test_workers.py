"""The life of one worker, without Ray: what it says, and what it leaves for the next group."""

from __future__ import annotations

from pathlib import Path

import pytest

from cleantune.errors import UserError
from cleantune.pipeline import ray_train
from cleantune.storage.files import read_json
from cleantune.utils.console import Console


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One worker of two lives and does this work."""

    def one(rank: int, work) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ray_train.run_worker({"folder": str(tmp_path), "cwd": str(tmp_path), "cache": None, "work": work})

    return one


def greets(console: Console) -> None:
    console.info("hello")


def refuses(console: Console) -> None:
    raise UserError("no such column")


def test_a_first_group_does_not_say_that_a_worker_was_lost_whoever_begins_first(live, tmp_path):
    live(1, greets)
    live(0, greets)
    assert (tmp_path / ray_train.CONSOLE_FILE).read_text() == "hello\n"


def test_only_the_group_after_a_loss_says_so_and_only_once(live, tmp_path):
    live(0, greets)
    live(1, greets)
    live(0, greets)
    said = (tmp_path / ray_train.CONSOLE_FILE).read_text().splitlines()
    assert said == ["hello", "a worker was lost: all go on from the last epoch's checkpoint", "hello"]


def test_what_the_user_can_put_right_is_noted_and_later_workers_do_nothing(live, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "ERROR_TIMEOUT", 0.2)
    with pytest.raises(UserError, match="no such column"):
        live(1, refuses)
    assert read_json(tmp_path / ray_train.ERROR_FILE)["reason"] == "no such column"
    live(0, greets)
    assert not (tmp_path / ray_train.CONSOLE_FILE).exists()


def test_a_refusal_that_all_ranks_share_ends_them_without_an_error(live, tmp_path):
    (tmp_path / f"{ray_train.ERROR_FILE}.0").touch()
    live(1, refuses)
    assert read_json(tmp_path / ray_train.ERROR_FILE)["reason"] == "no such column"
