import copy

import torch
from torch import nn

from cleantune.schedule import QuickAdamW, forget_gradients


def steps(cls, count: int, unused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5), nn.Linear(5, 2))
    net[0].to(memory_format=torch.channels_last)
    groups = [{"params": list(net[0].parameters()), "lr": 1e-2}, {"params": list(net[1:].parameters())}]
    optimiser = cls(groups, lr=1e-3, weight_decay=0.1, fused=True)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 2
    for k in range(count):
        forget_gradients(optimiser)
        z = torch.randn(8, 5, generator=torch.Generator().manual_seed(k))
        out = net[3](z) if unused and k % 2 else net(x)
        nn.functional.cross_entropy(out, y).backward()
        optimiser.step()
    return net, optimiser


def test_the_quick_step_is_torchs_to_the_bit():
    for unused in (False, True):
        (ours, mine), (theirs, its) = (steps(cls, 7, unused) for cls in (QuickAdamW, torch.optim.AdamW))
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        a, b = mine.state_dict()["state"], its.state_dict()["state"]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[i][name], b[i][name]) for i in a for name in b[i])


def test_torchs_own_step_serves_a_closure():
    p = nn.Parameter(torch.ones(3))
    optimiser = QuickAdamW([p], lr=0.1, fused=True)

    def closure():
        optimiser.zero_grad()
        value = p.square().sum()
        value.backward()
        return value

    assert float(optimiser.step(closure).detach()) == 3.0
    assert bool((p < 1).all())


def test_quick_steps_go_on_from_a_state_that_was_loaded():
    (net, optimiser), (_, other) = steps(QuickAdamW, 5), steps(QuickAdamW, 9)
    optimiser.load_state_dict(copy.deepcopy(other.state_dict()))
    optimiser.step()
    assert float(optimiser.state[net[0].weight]["step"]) == 10
