"""Tests of data parallelism: two processes select and learn as one does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from launched import launched
from test_resume import command, pictures
from tiny import save_tiny

from cleantune.distributed.batch_norm import SyncBatchNorm, convert_sync_batchnorm
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.methods import METHODS
from cleantune.methods.protocol import Scope

TABLE = [f"{name} {scope}" for name in METHODS for scope in get_args(Scope)] + ["ce all, BatchNorm learns"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("processes")
    processes = launched([str(Path(__file__).parent / "two_processes.py"), str(out)])
    assert [p.returncode for p in processes] == [0, 0], processes[0].stderr[-3000:] + processes[1].stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert found["world_size"] == 2
    found["shutdown"] = [json.loads((out / f"shutdown-{rank}.json").read_text()) for rank in (0, 1)]
    return found


@pytest.mark.parametrize("case", TABLE)
def test_two_processes_agree_with_one(report: dict[str, Any], case: str) -> None:
    found = report[case]
    assert found["selection"] == 0
    assert found["difference"] < 5e-3, "AdamW makes more of the last bits where gradients are small"
    assert found["again"], "two processes repeat themselves bitwise"
    assert found["identical"], "every process has the same weights and ledgers"
    assert found["forward_passes"], "cost is that of all processes"
    assert found["evaluation"]


@pytest.mark.parametrize("case", [c for c in TABLE if c.endswith(" head")])
def test_heads_of_two_processes_are_bitwise_identical(report: dict[str, Any], case: str) -> None:
    assert report[case]["difference"] == 0


def test_two_processes_resume_bitwise_identically(report: dict[str, Any]) -> None:
    assert report["resumed"]


def test_sync_batchnorm_equals_batchnorm_of_the_batch(report: dict[str, Any]) -> None:
    assert max(report["batch norm"].values()) < 1e-4


def test_extraction_is_divided_and_equals_one_process(report: dict[str, Any]) -> None:
    assert report["extracted"]["equal"]
    assert report["extracted"]["shards"] == [2, 2], "four shards, two for each process"


def test_batch_smaller_than_the_group_passes(report: dict[str, Any]) -> None:
    assert report["single row"]


def test_fsdp_agrees_with_a_whole_backbone_and_resumes(report: dict[str, Any]) -> None:
    found = report["fsdp"]
    assert found["local_fraction"] < 0.6, "each of two processes has about half of the weights"
    assert found["difference"] < 5e-3
    assert found["resumed"]
    assert found["gathered"], "gathered models are whole"


def test_processes_shut_down_before_the_interpreter(report: dict[str, Any]) -> None:
    assert report["shutdown"] == [True, True], "the threads of gloo abort a process that ends with them"


def test_fit_of_two_processes_agrees_with_one(tmp_path: Path) -> None:
    pictures(tmp_path / "data.parquet")
    save_tiny("resnet", tmp_path / "model")
    one = subprocess.run(command(tmp_path, "one"), capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    two = launched(command(tmp_path, "two")[1:])
    assert [process.returncode for process in two] == [0, 0], two[0].stderr + two[1].stderr
    assert two[1].stdout == "", "only the main process prints"
    a, b = (pd.read_parquet(tmp_path / name / "labels.parquet").sort_values("id") for name in ("one", "two"))
    assert (a["is_label_issue"].to_numpy() == b["is_label_issue"].to_numpy()).mean() >= 0.95
    assert np.corrcoef(a["label_score"], b["label_score"])[0, 1] >= 0.97


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 64])
def test_shards_of_all_processes_are_the_batch(count: int, rows: int) -> None:
    groups = [ProcessGroup(rank, count) for rank in range(count)]
    assert sum(groups[0].shard_sizes(rows)) == rows
    x = torch.arange(rows)
    parts = [r.shard(x)[: r.shard_sizes(rows)[r.rank]] for r in groups]
    assert torch.equal(torch.cat(parts), x)
    batches = list(range(rows))
    taken = [r.shard_batches(batches) for r in groups]
    assert {len(t) for t in taken} == {-(-rows // count)}, "as many forward passes in every process"
    assert set().union(*taken) == set(batches)


def test_single_process_returns_its_input() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert SINGLE_PROCESS.shard(x) is x
    assert SINGLE_PROCESS.gather_shards(x, 3) is x
    assert SINGLE_PROCESS.all_gather(x, [3]) is x
    assert SINGLE_PROCESS.on_main(lambda: x) is x
    assert SINGLE_PROCESS.is_identical([x])


def test_convert_sync_batchnorm_leaves_one_process_as_it_is() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    assert convert_sync_batchnorm(module, SINGLE_PROCESS) is module
    assert type(module[0]) is torch.nn.BatchNorm1d


def test_convert_sync_batchnorm_keeps_parameters_and_names() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    weight, state = module[0].weight, module.state_dict()
    converted = convert_sync_batchnorm(module, ProcessGroup(0, 2))
    assert type(converted[0]) is SyncBatchNorm  # type: ignore[index]
    assert converted[0].weight is weight  # type: ignore[index]
    assert converted.state_dict().keys() == state.keys()
