"""A backbone that learns is compiled where a timing says that it pays, and computes the same; else it is left alone."""

import copy

import pytest
import torch
from tiny import save_tiny

from cleantune.backbones import open_backbone
from cleantune.features import compiling
from cleantune.features.compiling import compiled_where_it_pays
from cleantune.features.precision import Precision
from cleantune.training.models import LinearHead, Net

CALLED = []


def same(graph, inputs):
    """A compiler that changes nothing."""
    CALLED.append(graph)
    return graph.forward


def failing(graph, inputs):
    """A compiler that does not know what it is given."""
    raise RuntimeError("no such operator")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    torch.compiler.reset()
    CALLED.clear()
    monkeypatch.setattr(compile, "BACKEND", same)
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(save_tiny("vit", tmp_path_factory.mktemp("m") / "v"))


def x(count=4):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ten_times(monkeypatch, faster):
    """Timings in which the compiled pass takes a tenth, or ten times as long."""
    monkeypatch.setattr(
        compiling, "race", lambda runs, rounds=6: {k: (0.1 if (k == "compiled") == faster else 1.0) for k in runs}
    )


@pytest.mark.parametrize("faster", [True, False])
def test_it_is_compiled_where_that_is_faster_and_the_choice_is_remembered(faster, backbone, monkeypatch, tmp_path):
    ten_times(monkeypatch, faster)
    plain = Precision("float32", False, "as set")
    chosen = compiled_where_it_pays(backbone, x(), plain, 10_000, tmp_path)
    assert chosen.compiled is faster
    assert chosen.why.startswith("as set; compiled it takes ")
    assert CALLED
    calls = len(CALLED)
    assert compiled_where_it_pays(backbone, x(), plain, 10_000, tmp_path) == chosen
    assert len(CALLED) == calls
    assert compiled_where_it_pays(backbone, x(), plain, 20, tmp_path) == plain  # whatever is remembered
    assert all(p.grad is None for p in backbone.parameters())


def test_a_short_training_is_not_worth_compiling_and_a_long_one_is_asked_anew(backbone, monkeypatch, tmp_path):
    ten_times(monkeypatch, True)
    plain = Precision()
    assert compiled_where_it_pays(backbone, x(), plain, 20, tmp_path) == plain
    assert not CALLED
    assert compiled_where_it_pays(backbone, x(), plain, 10_000, tmp_path).compiled


def test_what_cannot_be_compiled_stays_as_it_is_and_says_why(backbone, monkeypatch, tmp_path):
    ten_times(monkeypatch, True)
    monkeypatch.setattr(compile, "BACKEND", failing)
    chosen = compiled_where_it_pays(backbone, x(), Precision(), 10_000, tmp_path)
    assert not chosen.compiled
    assert "not compiled (" in chosen.why
    assert "no such operator" in chosen.why


def net_of(backbone, compiled):
    torch.manual_seed(0)
    return Net(copy.deepcopy(backbone), LinearHead(backbone.width, 3, init="normal"), Precision(compiled=compiled))


def test_a_compiled_net_learns_what_the_plain_one_learns_under_the_same_names(backbone, monkeypatch):
    monkeypatch.setattr(Net, "may_be_halved", lambda self: False)  # as on a GPU
    nets = {compiled: net_of(backbone, compiled).train() for compiled in (False, True)}
    for compiled, net in nets.items():
        out = net(x())
        assert bool(CALLED) is compiled
        out.logits.square().sum().backward()
    assert list(nets[True].state_dict()) == list(nets[False].state_dict())
    grads = [dict(net.named_parameters()) for net in nets.values()]
    for name, p in grads[0].items():
        torch.testing.assert_close(p.grad, grads[1][name].grad)


def test_a_net_that_only_looks_is_never_compiled(backbone):
    net = net_of(backbone, True).eval()
    with torch.no_grad():
        net(x())
    assert not CALLED


def test_compiled_features_are_told_apart_from_plain_ones():
    assert Precision(compiled=True).fingerprint != Precision().fingerprint
    assert Precision(compiled=True).words.endswith(", compiled")
