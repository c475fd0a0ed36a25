"""The run folder: whole files or none, refusals, rows, checkpoint."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from cleantune.errors import UserError
from cleantune.methods.protocol import EpochMetrics
from cleantune.storage import run_dir
from cleantune.storage.files import atomic_write, read_json, write_json, write_table, write_text
from cleantune.storage.run_dir import RunDir


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fails(beside: Path) -> None:
        beside.write_text("half of the new")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_table(path, fails)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_a_sentence_with_the_remedy_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device; .*--resume"),
        atomic_write(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_while_a_checkpoint_is_written_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir(tmp_path / "run")
    folder.save({"a": torch.ones(2)}, {"epoch": 1})

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        folder.save({"a": torch.zeros(2)}, {"epoch": 2})
    saved = folder.load()
    assert saved is not None
    assert saved[0]["a"].tolist() == [1, 1]
    assert saved[1] == {"epoch": 1}


def test_a_full_disk_while_a_row_is_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cleantune.storage.run_dir.os.fsync", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left"):
        folder.append_metrics(EpochMetrics(phase="probe", epoch=0))


def test_a_folder_that_is_not_empty_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty.*--resume.*--overwrite"):
        RunDir(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    RunDir(tmp_path / "new")
    RunDir(tmp_path / "new")


def test_overwrite_removes_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"--overwrite: .*no earlier run"):
        RunDir(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "config.toml").write_text("[matrix]\n")
    with pytest.raises(UserError, match="holds matrix and no run"):
        RunDir(tmp_path, overwrite=True)
    (tmp_path / "config.toml").write_text("[method]\n")
    (tmp_path / "summary.json").write_text("{}")
    folder = RunDir(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists(), "what cannot begin must not cost the earlier run"
    assert not folder.is_finished
    folder.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "x")
    with pytest.raises(UserError, match="choose another --out"):
        RunDir(tmp_path / "x" / "y")


def test_a_last_row_that_was_cut_off_is_left_out_and_written_over(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for epoch in range(3):
        folder.append_metrics(EpochMetrics(phase="probe", epoch=epoch))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert [row["epoch"] for row in folder.read_metrics()] == [0, 1]
    folder.save({}, {"rows": 1})
    assert folder.truncate_metrics() == [{"phase": "probe", "epoch": 0}]
    folder.append_metrics(EpochMetrics(phase="probe", epoch=1))
    assert [row["epoch"] for row in folder.read_metrics()] == [0, 1]
    assert all(isinstance(row, EpochMetrics) for row in folder.read_metrics())


def test_a_row_cut_off_inside_a_character_is_left_out(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.append_metrics(EpochMetrics(phase="probe", epoch=0))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"phase": "Ä'.encode()[:-1])
    assert [row["epoch"] for row in folder.read_metrics()] == [0]


def test_checkpoint_comes_back_to_the_bit_with_its_counters(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert folder.load() is None
    tensors = {
        "rng": torch.Generator().manual_seed(3).get_state(),
        "weight": torch.randn(3, 4).t(),
        "image": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "step": torch.tensor(7.0),
        "keep": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "nothing": torch.zeros(0, 3),
        "learning": torch.randn(2, requires_grad=True),
    }
    counters = {"phase": 1, "epoch": 3, "best": 0.1 + 0.2, "cost": {"seconds": {"tune": 1.5}}, "stale": True}
    folder.save(tensors, counters)
    saved = RunDir(tmp_path, resume=True).load()
    assert saved is not None
    assert saved[1] == counters
    assert saved[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert saved[0][name].dtype == value.dtype
        assert torch.equal(saved[0][name], value.detach())
    assert [p.name for p in (folder.path / RunDir.CHECKPOINT).parent.iterdir()] == ["state.safetensors"]


def test_a_state_is_due_once_the_last_one_took_less_than_a_fiftieth_of_the_time_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(run_dir.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run_dir, "to_bytes", lambda *_: (clock.append(clock.pop() + 3.0), b"")[1])
    folder = RunDir(tmp_path)
    assert folder.is_checkpoint_due()
    folder.save({}, {})
    assert not folder.is_checkpoint_due()
    clock[0] += 149.9
    assert not folder.is_checkpoint_due()
    clock[0] += 0.2
    assert folder.is_checkpoint_due()


def test_tensors_that_share_memory_are_saved_as_they_are(tmp_path: Path) -> None:
    folder, a = RunDir(tmp_path), torch.arange(6.0)
    folder.save({"a": a, "same": a, "part": a[2:4]}, {})
    saved = folder.load()
    assert saved is not None
    assert {name: value.tolist() for name, value in saved[0].items()} == {
        "a": a.tolist(), "same": a.tolist(), "part": [2.0, 3.0],
    }  # fmt: skip


def test_a_damaged_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.save({"a": torch.ones(100)}, {})
    (folder.path / RunDir.CHECKPOINT).write_bytes((folder.path / RunDir.CHECKPOINT).read_bytes()[:50])
    with pytest.raises(UserError, match=r"state\.safetensors is damaged .*--overwrite"):
        folder.load()


def test_json_has_no_nan_and_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"nan": float("nan"), "tensor": torch.tensor(2.5), 3: (1, None), "deep": [{"x": torch.tensor(1)}]})
    assert json.loads(path.read_text()) == {"nan": None, "tensor": 2.5, "3": [1, None], "deep": [{"x": 1}]}


def test_infinity_becomes_null_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [float("inf")])
    assert json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON")) == [None]


def test_a_missing_or_broken_summary_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json is missing.*--resume"):
        read_json(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "summary.json")


def test_a_run_is_finished_when_its_summary_is_there(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert not folder.is_finished
    write_json(tmp_path / "summary.json", {})
    assert folder.is_finished
