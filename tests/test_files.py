"""Atomic writes and JSON."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from cleantune.errors import UserError
from cleantune.storage.files import atomic_write, cache_folder, read_json, write_json, write_table, write_text


def test_failing_write_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(draft: Path) -> None:
        draft.write_text("half of the new")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_table(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_a_user_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    message = r"cannot write .*a\.txt: No space left on device; .*--resume"
    with pytest.raises(UserError, match=message), atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_plain_numbers_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"nan": float("nan"), "tensor": torch.tensor(2.5), 3: (1, None), "deep": [{"x": torch.tensor(1)}]})
    assert json.loads(path.read_text()) == {"nan": None, "tensor": 2.5, "3": [1, None], "deep": [{"x": 1}]}


def test_infinity_becomes_null_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [float("inf")])
    assert json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON")) == [None]


def test_missing_or_damaged_json_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json is missing.*--resume"):
        read_json(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "summary.json")


def test_cache_folder_is_the_setting_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANTUNE_CACHE", str(tmp_path / "environment"))
    assert cache_folder(str(tmp_path / "setting")) == tmp_path / "setting"
    assert cache_folder(None) == tmp_path / "environment"
