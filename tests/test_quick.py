"""The quick layers compute what the checkpoint's own layers compute, forward and backward."""

import copy

import pytest
import torch
from tiny import CHECKPOINTS
from torch import nn

from cleantune.allocator import keep_pages
from cleantune.backbones import quick, quiet
from cleantune.backbones.quick import quicken

VARIANTS = {
    "mobilenet_v2": {},
    "mobilenet_v2 without TensorFlow's padding": {"tf_padding": False},
    "mobilenet_v2 with dilation": {"output_stride": 8},
    "resnet": {},
    "resnet with bottlenecks": {"layer_type": "bottleneck"},
}


def pair(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A network in float64 with running statistics that are not trivial, and its quick twin."""
    import transformers

    loader, options = CHECKPOINTS[name.split()[0]]
    torch.manual_seed(seed)
    with quiet():
        config = getattr(transformers, loader).config_class(**(options | VARIANTS[name]))
        plain = getattr(transformers, loader)(config).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    twin = copy.deepcopy(plain)
    quicken(twin)
    return plain, twin


def feature(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network(x).last_hidden_state.float() if x.dtype != torch.float64 else network(x).last_hidden_state


@pytest.mark.parametrize("size", [32, 33, 40])
@pytest.mark.parametrize("name", VARIANTS)
def test_quick_layers_give_the_same_feature_and_gradients(name, size):
    plain, twin = (network.eval() for network in pair(name))
    assert sum(type(m) in quick._QUICK.values() for m in twin.modules()) > 3
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = feature(plain, x), feature(twin, x)
    torch.testing.assert_close(a, b)
    for out in (a, b):
        out.square().sum().backward()
    compared = 0
    for (key, p), q in zip(plain.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, key=key: f"{key}: {m}")
        compared += p.grad is not None
    assert compared > 10


@pytest.mark.parametrize("size", [32, 33, 40])
@pytest.mark.parametrize("name", VARIANTS)
def test_quick_layers_give_the_same_feature_where_nothing_learns_and_leave_their_input_alone(name, size):
    plain, twin = (network.eval() for network in pair(name))
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(feature(plain, x), feature(twin, x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", VARIANTS)
def test_quick_layers_still_learn_batch_statistics_in_training_mode(name):
    plain, twin = (network.train() for network in pair(name))
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = feature(plain, x)
        torch.manual_seed(0)
        b = feature(twin, x)
    torch.testing.assert_close(a, b)
    for (key, p), q in zip(plain.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v2 without TensorFlow's padding"])
def test_strided_depthwise_in_bfloat16_is_the_dense_one_read_at_every_other_pixel(name, monkeypatch):
    _, twin = pair(name)
    twin = twin.eval()
    x = torch.randn(3, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = feature(twin, x)
    (grads,) = [torch.autograd.grad(expected.square().sum(), list(twin.parameters()), allow_unused=True)]
    monkeypatch.setattr(quick, "_slow_strided", lambda x: True)  # the way of bfloat16, in digits that can be compared
    found = feature(twin, x)
    torch.testing.assert_close(expected, found)
    others = torch.autograd.grad(found.square().sum(), list(twin.parameters()), allow_unused=True)
    for p, q in zip(grads, others, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batchnorm_that_learns_sees_pixels_without_gaps(layout, monkeypatch):
    plain, twin = (network.train().to(memory_format=layout) for network in pair("mobilenet_v2"))
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=layout)
    expected = feature(plain, x)
    monkeypatch.setattr(quick, "_slow_strided", lambda x: True)
    seen = []
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = feature(twin, x)
    assert len(seen) > 3
    assert all(each.is_contiguous(memory_format=layout) for each in seen)
    torch.testing.assert_close(expected, found)
    for network, out in ((plain, expected), (twin, found)):
        out.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
    for p, q in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_way_of_bfloat16_is_taken_under_autocast_and_only_when_something_learns():
    x = torch.zeros(1)
    assert not quick._slow_strided(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick._slow_strided(x)
        with torch.no_grad():
            assert not quick._slow_strided(x)
    assert quick._slow_strided(x.bfloat16())


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet"])
def test_quick_layers_keep_names_weights_and_copies(name):
    plain, twin = pair(name)
    assert list(plain.state_dict()) == list(twin.state_dict())
    again = copy.deepcopy(twin)
    assert [type(m) for m in again.modules()] == [type(m) for m in twin.modules()]
    assert not set(map(id, again.parameters())) & set(map(id, twin.parameters()))


def test_pages_are_kept_or_the_library_is_another():
    import platform

    assert keep_pages() == (platform.libc_ver()[0] == "glibc")
