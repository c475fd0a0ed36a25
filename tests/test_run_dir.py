"""The folder of a run: refusals, metrics, checkpoints and reading."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from run_folder import make_run

from cleantune.errors import UserError
from cleantune.methods.protocol import EpochMetrics
from cleantune.storage import run_dir as run_dir_module
from cleantune.storage.files import write_json
from cleantune.storage.run_dir import RunDir


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.save({"a": torch.ones(2)}, {"epoch": 1})

    def fill_disk(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    with pytest.raises(UserError, match="No space left"):
        run_dir.save({"a": torch.zeros(2)}, {"epoch": 2})
    checkpoint = run_dir.load()
    assert checkpoint is not None
    assert checkpoint[0]["a"].tolist() == [1, 1]
    assert checkpoint[1] == {"epoch": 1}


def test_full_disk_while_appending_metrics_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cleantune.storage.run_dir.os.fsync", fill_disk)
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left"):
        RunDir(tmp_path).append_metrics(EpochMetrics(phase="probe", epoch=0))


def test_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty.*--resume.*--overwrite"):
        RunDir(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    RunDir(tmp_path / "new")
    RunDir(tmp_path / "new")


@pytest.mark.parametrize(("config", "message"), [(None, "has no earlier run"), ("[matrix]\n", "has matrix and no run")])
def test_overwrite_refuses_anything_but_a_run(tmp_path: Path, config: str | None, message: str) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    if config is not None:
        (tmp_path / "config.toml").write_text(config)
    with pytest.raises(UserError, match=f"--overwrite: .*{message}"):
        RunDir(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_overwrite_removes_the_earlier_run_when_cleared(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[method]\n")
    write_json(tmp_path / "summary.json", {})
    run_dir = RunDir(tmp_path, overwrite=True)
    assert (tmp_path / "config.toml").exists(), "a run that cannot start must not cost the earlier one"
    assert not run_dir.is_finished
    run_dir.clear()
    assert list(tmp_path.iterdir()) == []


def test_earlier_run_that_is_to_be_cleared_is_not_resumed(tmp_path: Path) -> None:
    earlier = RunDir(tmp_path)
    earlier.save({"a": torch.ones(1)}, {})
    earlier.write_compute({"backend": "torch"})
    (tmp_path / "config.toml").write_text("[method]\n")
    run_dir = RunDir(tmp_path, overwrite=True)
    assert run_dir.load() is None
    assert run_dir.compute() is None


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "x")
    with pytest.raises(UserError, match="choose another --out"):
        RunDir(tmp_path / "x" / "y")


def test_last_row_that_was_cut_off_is_dropped_and_overwritten(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for epoch in range(3):
        run_dir.append_metrics(EpochMetrics(phase="probe", epoch=epoch))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert [row["epoch"] for row in run_dir.read_metrics()] == [0, 1]
    run_dir.save({}, {"rows": 1})
    assert run_dir.truncate_metrics() == [{"phase": "probe", "epoch": 0}]
    run_dir.append_metrics(EpochMetrics(phase="probe", epoch=1))
    assert [row["epoch"] for row in run_dir.read_metrics()] == [0, 1]
    assert all(isinstance(row, EpochMetrics) for row in run_dir.read_metrics())


def test_metrics_without_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.append_metrics(EpochMetrics(phase="probe", epoch=0))
    assert run_dir.truncate_metrics() == []
    assert run_dir.read_metrics() == []


def test_row_cut_off_inside_a_character_is_dropped(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.append_metrics(EpochMetrics(phase="probe", epoch=0))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"phase": "Ä'.encode()[:-1])
    assert [row["epoch"] for row in run_dir.read_metrics()] == [0]


def test_checkpoint_is_restored_bitwise_with_its_counters(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.load() is None
    tensors = {
        "rng": torch.Generator().manual_seed(3).get_state(),
        "weight": torch.randn(3, 4).t(),
        "image": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "step": torch.tensor(7.0),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 3),
        "trained": torch.randn(2, requires_grad=True),
    }
    counters = {"phase": 1, "epoch": 3, "best": 0.1 + 0.2, "cost": {"seconds": {"tune": 1.5}}, "stale": True}
    run_dir.save(tensors, counters)
    checkpoint = RunDir(tmp_path, resume=True).load()
    assert checkpoint is not None
    assert checkpoint[1] == counters
    assert checkpoint[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert checkpoint[0][name].dtype == value.dtype
        assert torch.equal(checkpoint[0][name], value.detach())
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["state.safetensors"]


def test_checkpoint_is_due_after_fifty_times_its_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(run_dir_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run_dir_module, "to_bytes", lambda *_: (clock.append(clock.pop() + 3.0), b"")[1])
    run_dir = RunDir(tmp_path)
    assert run_dir.is_checkpoint_due()
    run_dir.save({}, {})
    assert not run_dir.is_checkpoint_due()
    clock[0] += 149.9
    assert not run_dir.is_checkpoint_due()
    clock[0] += 0.2
    assert run_dir.is_checkpoint_due()


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    run_dir, a = RunDir(tmp_path), torch.arange(6.0)
    run_dir.save({"a": a, "same": a, "part": a[2:4]}, {})
    checkpoint = run_dir.load()
    assert checkpoint is not None
    assert {name: value.tolist() for name, value in checkpoint[0].items()} == {
        "a": a.tolist(), "same": a.tolist(), "part": [2.0, 3.0],
    }  # fmt: skip


def test_damaged_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    run_dir, path = RunDir(tmp_path), tmp_path / RunDir.CHECKPOINT
    run_dir.save({"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"state\.safetensors is damaged .*--overwrite"):
        run_dir.load()


def test_backend_and_precisions_are_restored(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.compute() is None
    run_dir.write_compute({"backend": "torch"})
    assert RunDir(tmp_path, resume=True).compute() == {"backend": "torch"}


def test_run_is_finished_once_its_summary_exists(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert not run_dir.is_finished
    write_json(tmp_path / "summary.json", {})
    assert run_dir.is_finished


def test_finished_run_is_read_by_name(tmp_path: Path) -> None:
    run_dir = RunDir.read(make_run(tmp_path / "run"))
    assert run_dir.name == "run"
    assert run_dir.config["method"]["name"] == run_dir.get("method") == "robust"
    assert len(run_dir.metrics) == 24
    assert run_dir.number("noise.estimated_rate") == 0.412
    assert run_dir.number("noise.nothing") is None
    assert len(run_dir.labels) == 400
    assert run_dir.gallery is not None
    assert run_dir.unreadable is None


def test_unfinished_run_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        RunDir.read(tmp_path / "missing")
    with pytest.raises(UserError, match=r"config\.toml is missing, so the run is unfinished .*--resume"):
        RunDir.read(tmp_path)
    (tmp_path / "config.toml").write_text('[record]\naudit = "data"\n')
    with pytest.raises(UserError, match="has audit and no run"):
        RunDir.read(tmp_path)
