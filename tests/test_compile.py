"""A backbone is compiled for fine-tuning on request, where it computes the same."""

import copy

import pytest
import torch
from tiny import save_tiny

from cleantune.backbones import open_backbone
from cleantune.errors import UserError
from cleantune.features.compile import check_compiles
from cleantune.features.precision import Precision
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model

compiled_graphs = []


def eager(graph, inputs):
    """Compile to the same function."""
    compiled_graphs.append(graph)
    return graph.forward


def unsupported(graph, inputs):
    """Fail as a compiler does that lacks an operator."""
    raise RuntimeError("no such operator")


def shifted(graph, inputs):
    """Compile to another function."""
    return lambda *args: tuple(out + 1 for out in graph.forward(*args))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    compiled_graphs.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(save_tiny("vit", tmp_path_factory.mktemp("m") / "v"))


@pytest.fixture
def x():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_check_compiles_leaves_backbone_unchanged(dtype, backbone, x):
    state = copy.deepcopy(backbone.state_dict())
    check_compiles(backbone, x, Precision(dtype), eager)
    assert compiled_graphs
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())
    compiled_graphs.clear()
    backbone(x)
    assert not compiled_graphs


def test_failed_compilation_names_reason_and_remedy(backbone, x):
    with pytest.raises(UserError, match=r"no such operator.*leave --compile out"):
        check_compiles(backbone, x, Precision(), unsupported)


def test_other_features_after_compilation_are_refused(backbone, x):
    with pytest.raises(UserError, match=r"differ by .*leave --compile out"):
        check_compiles(backbone, x, Precision(), shifted)


def net_of(backbone, is_compiled, monkeypatch):
    torch.manual_seed(0)
    body = copy.deepcopy(backbone)
    monkeypatch.setattr(body, "compile", lambda: torch.nn.Module.compile(body, backend=eager))
    return Model(body, LinearHead(body.width, 3, init="normal"), compile_backbone=is_compiled)


def test_compiled_net_has_gradients_of_plain_net(backbone, x, monkeypatch):
    gradients = {}
    for is_compiled in (False, True):
        net = net_of(backbone, is_compiled, monkeypatch).train()
        net(x).logits.square().sum().backward()
        assert bool(compiled_graphs) is is_compiled
        gradients[is_compiled] = {name: p.grad for name, p in net.named_parameters()}
    assert list(gradients[True]) == list(gradients[False])
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient)


def test_net_without_gradients_is_not_compiled(backbone, x, monkeypatch):
    net = net_of(backbone, True, monkeypatch).eval()
    with torch.no_grad():
        net(x)
    assert not compiled_graphs
