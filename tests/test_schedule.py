import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cleantune.config.run import configure
from cleantune.methods.protocol import Stage
from cleantune.studies.compare.cells import at_rate
from cleantune.training.epochs import phases
from cleantune.training.optim import REFERENCE_BATCH_SIZE, QuickAdamW, backbone_learning_rate_at, forget_gradients


def steps(cls, count: int, unused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5), nn.Linear(5, 2))
    net[0].to(memory_format=torch.channels_last)
    groups = [{"params": list(net[0].parameters()), "lr": 1e-2}, {"params": list(net[1:].parameters())}]
    optimizer = cls(groups, lr=1e-3, weight_decay=0.1, fused=True)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 2
    for k in range(count):
        forget_gradients(optimizer)
        z = torch.randn(8, 5, generator=torch.Generator().manual_seed(k))
        out = net[3](z) if unused and k % 2 else net(x)
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
    return net, optimizer


def test_the_quick_step_is_torchs_to_the_bit():
    for unused in (False, True):
        (ours, mine), (theirs, its) = (steps(cls, 7, unused) for cls in (QuickAdamW, torch.optim.AdamW))
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        a, b = mine.state_dict()["state"], its.state_dict()["state"]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[i][name], b[i][name]) for i in a for name in b[i])


def test_torchs_own_step_serves_a_closure():
    p = nn.Parameter(torch.ones(3))
    optimizer = QuickAdamW([p], lr=0.1, fused=True)

    def closure():
        optimizer.zero_grad()
        value = p.square().sum()
        value.backward()
        return value

    assert float(optimizer.step(closure).detach()) == 3.0
    assert bool((p < 1).all())


def test_quick_steps_go_on_from_a_state_that_was_loaded():
    (net, optimizer), (_, other) = steps(QuickAdamW, 5), steps(QuickAdamW, 9)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    optimizer.step()
    assert float(optimizer.state[net[0].weight]["step"]) == 10


@given(st.integers(1, 4096), st.floats(1e-6, 1e-2))
def test_a_backbones_rate_goes_with_the_root_of_the_batch(size, recommended):
    at = {
        n: backbone_learning_rate_at(Stage(batch_size=n), recommended) for n in (size, 4 * size, REFERENCE_BATCH_SIZE)
    }
    assert at[4 * size] == pytest.approx(2 * at[size], rel=0.011), "three digits each"
    assert at[REFERENCE_BATCH_SIZE] == pytest.approx(recommended, rel=0.005)


def test_a_rate_that_is_set_stays_and_multiples_are_of_the_one_that_would_be_taken():
    config = configure({"data": {"data": "images"}, "method": {"name": "robust"}})
    turn: Any = config.method
    set_to = replace(turn, tune=replace(turn.tune, backbone_learning_rate=7e-4))

    def stated(method: Any) -> set[float]:
        return {p.stage.backbone_learning_rate for p in phases(method, 5e-4) if p.scope == "all"}

    assert stated(set_to) == {7e-4}
    assert stated(turn) == {backbone_learning_rate_at(turn.tune, 5e-4)} != {5e-4}, (
        "its batches are not of the size that rates are for"
    )
    assert list(stated(at_rate(config, 3.0, 5e-4).method)) == [
        pytest.approx(3 * backbone_learning_rate_at(turn.tune, 5e-4))
    ]
