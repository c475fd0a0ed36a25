"""The quick layers compute what the checkpoint's own layers compute, forward and backward."""

import contextlib
import copy
import platform
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis.strategies import data, integers, sampled_from, tuples
from tiny import CHECKPOINTS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cleantune.backbones import quiet_transformers
from cleantune.kernels import conv
from cleantune.kernels.conv import quicken
from cleantune.kernels.fold_batch_norm import Foldable, Folding, given
from cleantune.kernels.to_delete import batch_norm
from cleantune.kernels.to_delete.halves import HALVES, Learning, half_of_the_threads, halved
from cleantune.utils.malloc import keep_pages

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
    with quiet_transformers():
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


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [32, 33, 40])
@pytest.mark.parametrize("name", VARIANTS)
def test_quick_layers_give_the_same_feature_and_gradients(name, size, layout, monkeypatch):
    plain, twin = (network.eval().to(memory_format=layout) for network in pair(name))
    assert sum(type(m) in conv._QUICK.values() for m in twin.modules()) > 3
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, products, product = x.contiguous(memory_format=layout), [], conv._product
    monkeypatch.setattr(conv, "_product", lambda *given: products.append(product(*given)) or products[-1])
    a, b = feature(plain, x), feature(twin, x)
    assert b.is_contiguous(memory_format=layout)
    assert products or layout != torch.channels_last or "resnet" in name  # whose maps are larger
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [32, 33, 40])
@pytest.mark.parametrize("name", VARIANTS)
def test_looks_whose_convolutions_compute_their_activations_give_the_same_feature(
    name, size, layout, dtype, monkeypatch
):
    plain, twin = (network.eval().float().to(memory_format=layout) for network in pair(name))
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    fused, pointwise = [], conv._pointwise
    monkeypatch.setattr(conv, "_pointwise", lambda *given: fused.append(given[7]) or pointwise(*given))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        b = feature(twin, x)
    assert bool(fused) == torch.backends.mkldnn.is_available()
    with torch.no_grad():
        a = feature(plain, x)
    error = float((b.float() - a).norm() / a.norm())
    assert error < (1e-5 if dtype == torch.float32 else 0.05), error


def test_a_torch_without_the_operator_computes_activations_by_themselves(monkeypatch):
    def missing(*given):
        raise AttributeError("no such operator")

    plain, twin = (network.eval().float() for network in pair("mobilenet_v2"))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(conv, "_pointwise", missing)
    conv._fuses.cache_clear()
    try:
        assert not conv._fuses()
        with torch.no_grad():
            torch.testing.assert_close(feature(plain, x), feature(twin, x), rtol=1e-4, atol=1e-5)
    finally:
        conv._fuses.cache_clear()


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


def noted(function, monkeypatch) -> list[torch.Size]:
    """The shapes of what an autograd function is given from now on."""
    shapes, applied = [], function.apply
    monkeypatch.setattr(function, "apply", lambda *given: shapes.append(given[0].shape) or applied(*given))
    return shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_the_plain_networks_where_batch_statistics_are_learned(name, monkeypatch):
    plain, twin = (network.train().to(memory_format=torch.channels_last) for network in pair(name))
    for name_of, least in (("_WORTH", 0), ("_LARGE", 0), ("_MORE", 2)):
        monkeypatch.setattr(batch_norm, name_of, least)
    taken = {kind: noted(getattr(batch_norm, kind), monkeypatch) for kind in ("_ByRows", "_Expanded")}
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    a, b = plain(x.double()).last_hidden_state, twin.float()(x).last_hidden_state
    assert taken["_ByRows"]
    assert taken["_Expanded"] or "resnet" in name
    slope = torch.randn(a.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a.backward(slope)
    b.backward(slope.float())
    both = zip(plain.named_parameters(), twin.parameters(), strict=True)
    compared = {name: (p.grad.norm(), (q.grad - p.grad).norm()) for (name, p), q in both}
    largest = max(size for size, _ in compared.values())  # where a map is one pixel, some gradients are zero
    assert len(compared) > 10
    assert all(error < 1e-3 * size + 1e-6 * largest for size, error in compared.values()), compared


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v2 without TensorFlow's padding"])
def test_strided_depthwise_in_bfloat16_is_the_plain_layer_with_rounded_weights_and_so_are_its_gradients(name):
    plain, twin = (network.eval() for network in pair(name))
    compared = 0
    for own, quicker in zip(plain.modules(), twin.float().modules(), strict=True):
        convolution = getattr(quicker, "convolution", None)
        if not isinstance(convolution, nn.Conv2d) or convolution.stride == (1, 1) or convolution.groups == 1:
            continue
        x = torch.randn(3, convolution.in_channels, 9, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
        weight, bias = (t.detach().bfloat16().double() for t in quicker.kernel())
        padded = nn.functional.pad(x.double(), quicker.geometry.pads(x.shape))
        exact = nn.functional.conv2d(padded, weight, bias, 2, groups=len(weight)).clamp(0, 6)
        with torch.autocast("cpu", torch.bfloat16):
            found = quicker(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)
        expected = own(x.double())
        grads, others = (
            torch.autograd.grad(out.square().sum(), list(m.parameters()))
            for out, m in ((expected, own), (found, quicker))
        )
        for p, q in zip(grads, others, strict=True):
            torch.testing.assert_close(q.double(), p, rtol=0.02, atol=0.02 * float(p.abs().max()))
        compared += 1
    assert compared > 1


@settings(max_examples=60)
@given_by(data())
def test_strided_depthwise_convolutions_have_torchs_gradients_in_every_geometry(draw):
    kernel, dilation, stride = (draw.draw(tuples(integers(1, 3), integers(1, 3))) for _ in range(3))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    down, along = (draw.draw(tuples(integers(0, r), integers(0, r))) for r in reach)
    high, wide = (draw.draw(integers(max(1, r + 1 - sum(p)), 7)) for r, p in zip(reach, (down, along), strict=True))
    pads = (*along, *down)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, high, wide, generator=g, dtype=torch.float64)
    x = x.contiguous(memory_format=draw.draw(sampled_from([torch.channels_last, torch.contiguous_format])))
    weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((3, 1, *kernel), (3,)))
    learned = [t.requires_grad_() for t in (x, weight, bias)]
    ours = conv._StridedDepthwise.apply(x, pads, weight, bias, stride, dilation)
    theirs = nn.functional.conv2d(nn.functional.pad(x, pads), weight, bias, stride, 0, dilation, 3)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn(ours.shape, generator=g, dtype=torch.float64)
    for p, q in zip(*(torch.autograd.grad(y, learned, slope) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(p, q)


def test_a_strided_depthwise_convolution_with_more_padding_than_its_kernel_sees_is_torchs(monkeypatch):
    convolution = nn.Conv2d(3, 3, 2, 2, groups=3)
    x, pads = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16(), (2, 0, 0, 2)
    geometry = conv._Geometry.of(convolution)
    assert not geometry.sees_pixels(pads)
    assert geometry.sees_pixels((1, 0, 0, 1))
    monkeypatch.setattr(conv._Geometry, "pads", lambda own, shape: pads)
    assert conv._find(x.shape, geometry, True, True).kind == "framed"
    found = conv._placed(x, *(t.bfloat16() for t in convolution.parameters()), geometry)
    expected = convolution(nn.functional.pad(x.float(), pads))
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_mean_of_all_pixels_is_torchs_and_its_gradient_lies_as_the_pixels_do(size, layout, dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, size, size, generator=g).to(dtype).contiguous(memory_format=layout).requires_grad_()
    plain, twin = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1))), nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)))
    quicken(twin)
    slope = torch.randn(3, 40, 1, 1, generator=g).to(dtype)
    theirs, ours = plain(x), twin(x)
    torch.testing.assert_close(ours, theirs)
    expected, found = (torch.autograd.grad(y, x, slope)[0] for y in (theirs, ours))
    torch.testing.assert_close(found, expected)
    if layout == torch.channels_last:
        assert found.is_contiguous(memory_format=layout)
    wider = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(2))
    before = wider(x)
    quicken(wider)
    torch.testing.assert_close(wider(x), before)


def test_the_ways_of_learning_are_taken_on_a_processor_and_only_when_something_learns():
    strided = conv._Geometry.of(nn.Conv2d(4, 4, 3, 2, 1, groups=4))
    narrow = conv._Geometry.of(nn.Conv2d(4, 2, 1))
    x = torch.zeros(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    meta = torch.zeros(2, 4, 8, 8, device="meta", dtype=torch.bfloat16)
    assert conv._way(x, strided).kind == conv._way(meta, strided).kind == "plain"
    assert conv._way(x.bfloat16(), strided).kind == "strided"
    with torch.autocast("cpu", torch.bfloat16):
        assert conv._way(x, strided).kind == "strided"
        with torch.no_grad():
            assert conv._way(x, strided).kind == "plain"
    assert conv._way(x, narrow).kind == "product"
    assert conv._way(x.contiguous(memory_format=torch.contiguous_format), narrow).kind == "plain"
    assert conv._way(meta, narrow).kind == "plain"
    with torch.no_grad():
        assert conv._way(x, narrow).kind == "plain"


@pytest.mark.parametrize(("kernel", "ins", "outs", "side", "kind"), [
    (1, 8, 4, 8, "product"), (1, 8, 4, 9, "plain"), (1, 4, 8, 4, "product"), (1, 4, 8, 5, "plain"),
    (3, 8, 4, 4, "plain"), (3, 8, 4, 2, "framed"),
])  # fmt: skip
def test_small_maps_are_products_and_maps_below_a_depthwise_kernel_are_framed(kernel, ins, outs, side, kind):
    groups = 4 if kernel == 3 else 1
    geometry = conv._Geometry.of(nn.Conv2d(ins, outs, kernel, padding=kernel // 2, groups=groups))
    x = torch.zeros(2, ins, side, side).contiguous(memory_format=torch.channels_last)
    assert conv._way(x, geometry).kind == kind


def test_padding_is_tensorflows_where_the_checkpoint_says_so_and_zeros_make_every_map_of_its_length():
    convolution = nn.Conv2d(1, 1, 3, 2, 1, dilation=1)
    own, same = conv._Geometry.of(convolution), conv._Geometry.of(convolution, same=True)
    for high, wide in ((7, 8), (8, 7), (1, 2)):
        assert own.pads((1, 1, high, wide)) == (1, 1, 1, 1)
        left, right, top, bottom = same.pads((1, 1, high, wide))
        assert 0 <= right - left <= 1
        padded = nn.functional.pad(torch.zeros(1, 1, high, wide), (left, right, top, bottom))
        out = nn.functional.conv2d(padded, convolution.weight, stride=2)
        assert out.shape[2:] == (-(-high // 2), -(-wide // 2))
        assert 0 <= bottom - top <= 1


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet"])
def test_quick_layers_keep_names_weights_and_copies(name):
    plain, twin = pair(name)
    assert list(plain.state_dict()) == list(twin.state_dict())
    again = copy.deepcopy(twin)
    assert [type(m) for m in again.modules()] == [type(m) for m in twin.modules()]
    assert not set(map(id, again.parameters())) & set(map(id, twin.parameters()))


def test_pages_are_kept_or_the_library_is_another():
    assert keep_pages() == (platform.libc_ver()[0] == "glibc")


def test_memory_of_any_size_that_was_freed_is_not_fetched_anew():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    code = (
        "import resource, numpy as np\nfrom cleantune.utils.malloc import keep_pages\nkeep_pages()\n"
        "for _ in range(4):\n    np.ones(50 << 20, np.uint8)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    second, last = int(told[1]), int(told[-1])
    assert last - second < 20  # each 50 MiB has 25 pages of 2 MiB or 12,800 of 4 KiB


def test_halves_of_quick_layers_have_the_bits_of_two_ranks_and_the_gradients_of_the_whole_batch():
    _, twin = pair("mobilenet_v2")
    twin = twin.eval().float().to(memory_format=torch.channels_last)
    twin.conv_stem.first_conv.convolution.weight.requires_grad_(False)
    twin.conv_stem.first_conv.activation = nn.PReLU()  # of a layer that folds, and learned beside what is folded
    x = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    weights = list(twin.parameters())
    net = Pooled(twin)
    with half_of_the_threads():
        net(x).square().sum().backward()
        whole = [p.grad for p in weights]
        twin.zero_grad()
        f = halved(Learning(net), x, contextlib.nullcontext)
        f.square().sum().backward()
        found = [p.grad for p in weights]
        parts = [net(share.part(x)) for share in HALVES]
        learning = [p for p in weights if p.requires_grad]
        sums = [torch.autograd.grad(part.square().sum(), learning) for part in parts]
    assert torch.equal(f, torch.cat(parts))
    assert [p is None for p in found] == [not p.requires_grad for p in weights]
    assert sum(p is None for p in found) == 1
    expected = iter(zip(*sums, strict=True))
    for p, q in zip(found, whole, strict=True):
        if p is not None:
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4 * float(q.abs().max()))
            one, other = next(expected)
            assert torch.equal(p, one + other)


def test_halves_of_frozen_layers_still_teach_what_learns_beside_them():
    _, twin = pair("mobilenet_v2")
    twin = twin.eval().float().requires_grad_(False)
    activation = twin.conv_stem.first_conv.activation = nn.PReLU()
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net = Pooled(twin)
    with half_of_the_threads():
        halved(Learning(net), x, contextlib.nullcontext).square().sum().backward()
        sums = [torch.autograd.grad(net(share.part(x)).square().sum(), activation.weight)[0] for share in HALVES]
    assert torch.equal(activation.weight.grad, sum(sums))
    assert bool(activation.weight.grad.any())
    assert all(p.grad is None for p in twin.parameters() if p is not activation.weight)


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_forward_that_learns_copies_no_activation_and_finds_its_ways_once():
    _, twin = pair("mobilenet_v2")
    twin = twin.eval().float().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    feature(twin, x)
    before, counted = conv._found.cache_info(), Operations()
    with counted:
        feature(twin, x)
    after = conv._found.cache_info()
    assert after.misses == before.misses
    assert after.hits - before.hits == sum(isinstance(m, Folding) for m in twin.modules())
    assert counted.counts["hardtanh"] > 3
    assert not counted.counts["clone"], "autograd would copy what an activation writes over"


class Pooled(nn.Module):
    """Last feature map, averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).last_hidden_state.mean((2, 3))


def test_what_is_folded_once_is_taken_in_the_thread_that_it_is_given_to_and_only_where_statistics_are_fixed():
    _, twin = pair("mobilenet_v2")
    layers = [m for m in twin.modules() if isinstance(m, Folding)]
    assert Foldable.inside(twin.train()).fold() == {}
    made = Foldable.inside(twin.eval()).fold()
    assert set(made) == set(layers)
    layer = layers[0]
    zeros = {layer: tuple(torch.zeros_like(t) for t in made[layer])}
    with given(zeros), ThreadPoolExecutor(1) as other:
        assert not layer.kernel()[0].any()
        torch.testing.assert_close(layers[1].kernel(), made[layers[1]])
        torch.testing.assert_close(other.submit(layer.kernel).result(), made[layer])
    torch.testing.assert_close(layer.kernel(), made[layer])


def test_a_look_folds_a_layer_once_and_the_next_look_sees_the_weights_of_then(monkeypatch):
    _, twin = pair("mobilenet_v2")
    net, x = Pooled(twin.eval().float()), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded, own = [], Folding.fold
    monkeypatch.setattr(Folding, "fold", lambda layer, dtype=None: folded.append(layer) or own(layer, dtype))
    with torch.no_grad():
        expected = net(x)
        layers = len(folded)
        for _ in range(2):
            folded.clear()
            with given({}):
                found = torch.cat([net(part) for part in x.split(2)])
            assert len(folded) == layers > 3
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            twin.conv_1x1.convolution.weight.mul_(-1)
            expected = net(x)
    assert not torch.allclose(found, expected, rtol=1e-2)
    with given({}), given({}):
        pass
    folded.clear()
    layer = twin.conv_stem.first_conv
    assert layer.kernel() is not layer.kernel()
    assert folded == [layer, layer]


def test_a_look_in_bfloat16_rounds_its_kernels_once_for_all_batches():
    _, twin = pair("mobilenet_v2")
    net, x = Pooled(twin.eval().float()), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kernels: dict[Folding, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), given(kernels):
        found = net(x)
        made = dict(kernels)
        assert torch.equal(net(x), found)
    assert {t.dtype for kernel in made.values() for t in kernel} == {torch.bfloat16}
    assert len(made) > 3
    assert all(kernels[layer] is kernel for layer, kernel in made.items())
    with torch.no_grad(), given({}):
        torch.testing.assert_close(found.float(), net(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 1, 3), (0, 0, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_in_one_pass_is_torchs_padding_and_so_are_its_gradients(layout, pads, dtype, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 4, generator=g).to(dtype).contiguous(memory_format=layout).requires_grad_()
    assert conv._padded(x, pads).grad_fn.name() != "_PaddedBackward", "a map as small as this is torch's"
    assert torch.equal(conv._framed(x, pads), nn.functional.pad(x, pads))
    monkeypatch.setattr(conv, "_LARGE", x.numel())
    ours, theirs = conv._padded(x, pads), nn.functional.pad(x, pads)
    assert ours.grad_fn.name() == "_PaddedBackward"
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)
    slope = torch.randn(ours.shape, generator=g).to(dtype)
    found, expected = (torch.autograd.grad(y, x, slope)[0] for y in (ours, theirs))
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)


class Layer(Folding):
    """A convolution, with or without a bias, and a normalization of fixed statistics."""

    def __init__(self, bias: bool, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 2, stride, groups=3, bias=bias)
        self.normalization = nn.BatchNorm2d(3).eval()
        self.normalization.running_mean.uniform_(-1, 1)
        self.normalization.running_var.uniform_(0.5, 2)
        nn.init.uniform_(self.normalization.weight, 0.5, 1.5)
        nn.init.normal_(self.normalization.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.convolution(x))


def test_kernels_folded_together_are_the_layers_and_gradients_reach_what_they_are_made_of():
    torch.manual_seed(0)
    layers = nn.ModuleList([Layer(True, 1), Layer(False, 1), Layer(False, 2)])
    x, unused = torch.randn(4, 3, 5, 5), layers[1]
    assert Foldable.inside(layers).layers == list(layers)
    made = Foldable.inside(layers).fold()
    for layer in layers:
        weight, bias = made[layer]
        found = nn.functional.conv2d(x, weight, bias, layer.convolution.stride, groups=3)
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
        if layer is unused:
            continue
        parts = list(layer.parameters())
        back = torch.autograd.grad(found.square().sum(), parts, retain_graph=True)
        expected = torch.autograd.grad(layer(x).square().sum(), parts)
        for ours, theirs in zip(back, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    both = sum(t.sum() for layer, kernel in made.items() for t in kernel if layer is not unused)
    assert torch.autograd.grad(both, unused.convolution.weight, allow_unused=True) == (None,)


def test_kernels_in_another_format_are_roundings_and_what_learns_stays_as_it_is():
    layers = Foldable.of([Layer(True, 1), Layer(False, 2)])
    exact, rounded = layers.fold(), layers.fold(torch.bfloat16)
    for layer in layers.layers:
        for one, other in zip(exact[layer], rounded[layer], strict=True):
            assert other.dtype == torch.bfloat16
            assert torch.equal(one.to(other.dtype), other)
    first = layers.layers[0]
    sum(t.float().sum() for t in rounded[first]).backward()
    for parameter in first.parameters():
        assert parameter.grad.dtype == torch.float32
    assert bool(first.convolution.weight.grad.any())


def test_kernels_are_the_same_where_nothing_learns():
    layers = Foldable.of([Layer(True, 1), Layer(False, 2)])
    learned = layers.fold()
    with torch.no_grad():
        looked = layers.fold()
    for layer in layers.layers:
        assert not any(t.requires_grad for t in looked[layer])
        for one, other in zip(learned[layer], looked[layer], strict=True):
            torch.testing.assert_close(one, other)
