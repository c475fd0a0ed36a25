"""Several ranks against one: the same plans, losses and nets, whatever the method does with a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from launched import launched

from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cleantune.methods import METHODS
from cleantune.methods.protocol import Scope

pytest.importorskip("accelerate")
TABLE = [f"{name} {scope}" for name in METHODS for scope in get_args(Scope)] + ["ce all, BatchNorm learns"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks")
    ended = launched([str(Path(__file__).parent / "two_ranks.py"), str(out)])
    assert [e.returncode for e in ended] == [0, 0], ended[0].stderr[-3000:] + ended[1].stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "said.json").read_text())
    assert found["count"] == 2
    found["left"] = [json.loads((out / f"left-{rank}.json").read_text()) for rank in (0, 1)]
    return found


@pytest.mark.parametrize("case", TABLE)
def test_two_ranks_end_as_one_and_alike(said: dict[str, Any], case: str) -> None:
    found = said[case]
    assert found["plan"] == 0
    assert found["difference"] < 5e-3, "AdamW makes more of the last bits where gradients are small"
    assert found["again"], "the same ranks give the same bits"
    assert found["alike"], "every rank has the same nets and ledgers"
    assert found["forward_passes"], "cost is that of the whole, not of a rank"
    assert found["evaluation"]


@pytest.mark.parametrize("case", [c for c in TABLE if c.endswith(" head")])
def test_heads_on_cached_features_are_equal_to_the_bit(said: dict[str, Any], case: str) -> None:
    assert said[case]["difference"] == 0


def test_a_resumed_run_of_two_ranks_ends_with_the_bits_of_one_left_alone(said: dict[str, Any]) -> None:
    assert said["resumed"]


def test_shared_batch_normalization_is_that_of_the_whole_batch(said: dict[str, Any]) -> None:
    assert max(said["batch norm"].values()) < 1e-4


def test_extraction_is_divided_and_equal_to_that_of_one_process(said: dict[str, Any]) -> None:
    assert said["extracted"]["equal"]
    assert said["extracted"]["made"] == [2, 2], "four shards, two a rank"


def test_a_batch_smaller_than_the_ranks_passes_all_the_same(said: dict[str, Any]) -> None:
    assert said["empty share"]


def test_a_backbone_divided_by_fsdp_ends_as_a_whole_one_and_resumes_to_the_bit(said: dict[str, Any]) -> None:
    found = said["divided"]
    assert found["held"] < 0.6, "each of two ranks holds about half of the weights"
    assert found["difference"] < 5e-3
    assert found["resumed"]
    assert found["gathered"], "what is delivered is whole"


def test_ranks_leave_one_another_before_the_interpreter_ends(said: dict[str, Any]) -> None:
    assert said["left"] == [True, True], "gloo's threads abort a process that ends with them"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 64])
def test_shares_of_all_ranks_are_the_batch(count: int, rows: int) -> None:
    ranks = [ProcessGroup(rank, count) for rank in range(count)]
    assert sum(ranks[0].sizes(rows)) == rows
    x = torch.arange(rows)
    parts = [r.part(x)[: r.sizes(rows)[r.rank]] for r in ranks]
    assert torch.equal(torch.cat(parts), x)
    batches = list(range(rows))
    taken = [r.mine(batches) for r in ranks]
    assert {len(t) for t in taken} == {-(-rows // count)}, "as many forward_passes on every rank"
    assert set().union(*taken) == set(batches)


def test_one_process_is_left_as_it_is() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert SINGLE_PROCESS.part(x) is x
    assert SINGLE_PROCESS.join(x, 3) is x
    assert SINGLE_PROCESS.all_gather(x, [3]) is x
    assert SINGLE_PROCESS.first(lambda: x) is x
    assert SINGLE_PROCESS.is_identical([x])
