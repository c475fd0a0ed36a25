"""BatchNorm that learns is torch's but for rounding, by whichever way it goes."""

import copy

import pytest
import torch
from torch import nn

from cleantune.kernels import conv
from cleantune.kernels.to_delete import batch_norm

ROUNDED = [(torch.float32, 1e-4), (torch.bfloat16, 0.01)]


def norm_of(channels: int, g: torch.Generator) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.003, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=g)
        norm.bias.normal_(generator=g)
    return norm


def pixels(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> torch.Tensor:
    x = (torch.randn(shape, generator=g) * 2 + 1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def nodes(out: torch.Tensor) -> list[str]:
    """The names of autograd's nodes behind a tensor, along the first input of each."""
    node, names = out.grad_fn, []
    while node is not None:
        names.append(type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None
    return names


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.double().norm())


@pytest.mark.parametrize(("dtype", "error"), ROUNDED)
@pytest.mark.parametrize(("channels", "size", "fits"), [
    (2, 16, True), (5, 16, True), (8, 32, True), (24, 8, True), (40, 8, True),
    (2, 5, False), (16, 8, False), (48, 4, False),
])  # fmt: skip
def test_by_rows_of_several_pixels_it_is_torchs_but_for_rounding(channels, size, fits, dtype, error, monkeypatch):
    monkeypatch.setattr(batch_norm, "_WORTH", 0)
    g = torch.Generator().manual_seed(channels)
    norm = norm_of(channels, g)
    x, upstream = (pixels((6, channels, size, size), dtype, g) for _ in range(2))
    found = []
    for kind, normalized in ((torch.float64, lambda x, norm: norm(x)), (dtype, batch_norm.normalized)):
        mine = copy.deepcopy(norm).to(torch.float64) if kind == torch.float64 else copy.deepcopy(norm)
        given = x.to(kind).requires_grad_()
        out = normalized(given, mine)
        gradients = torch.autograd.grad(out, [given, *mine.parameters()], upstream.to(kind))
        found.append([out.detach(), *gradients, *mine.buffers()])
    assert ("_ByRowsBackward" in nodes(out)) == fits
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    assert [t.dtype for t in found[1][:2]] == [dtype, dtype]
    for theirs, ours in zip(*found, strict=True):
        assert distance(ours, theirs) < error


def test_small_maps_are_not_gone_through_by_rows():
    few, many = (torch.zeros(count, 8, 32, 32).contiguous(memory_format=torch.channels_last) for count in (15, 16))
    assert batch_norm._groups(few) == 1
    assert batch_norm._groups(many) == 16


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(), nn.SiLU()])
@pytest.mark.parametrize(("channels", "out", "size"), [(8, 48, 16), (3, 12, 5), (16, 64, 9), (32, 128, 4)])
def test_an_expansion_is_convolution_batchnorm_and_activation_but_for_rounding(
    channels, out, size, activation, dtype, error
):
    g = torch.Generator().manual_seed(out)
    weight, norm = torch.randn(out, channels, 1, 1, generator=g), norm_of(out, g)
    x, upstream = pixels((6, channels, size, size), dtype, g), pixels((6, out, size, size), dtype, g)
    usual = copy.deepcopy(norm).double()
    known = [t.double().requires_grad_() for t in (x, weight)]
    y = usual(nn.functional.conv2d(*known))
    # Where rounding decides on which side of a limit a number lies, the slope is another.
    near = torch.zeros_like(y, dtype=torch.bool)
    for limit in batch_norm._LIMITS.get(type(activation), ()):
        near |= (y.detach() - limit).abs() < 0.1
    slope = upstream.masked_fill(near, 0)
    theirs = y if activation is None else activation(y)
    given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    ours = batch_norm.expanded(*given, norm, activation)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    expected = torch.autograd.grad(theirs, [*known, *usual.parameters()], slope.double())
    found = torch.autograd.grad(ours, [*given, *norm.parameters()], slope)
    both = [ours.detach(), *found, *norm.buffers()], [theirs.detach(), *expected, *usual.buffers()]
    for a, b in zip(*both, strict=True):
        assert distance(a, b) < error


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_an_expansion_keeps_its_digits_where_means_are_large_beside_deviations(dtype, error):
    g = torch.Generator().manual_seed(0)
    x = (pixels((6, 8, 16, 16), torch.float32, g) / 20 + 10).to(dtype)
    weight, norm = torch.randn(32, 8, 1, 1, generator=g), norm_of(32, g)
    theirs = copy.deepcopy(norm).double()(nn.functional.conv2d(x.double(), weight.double()))
    assert distance(batch_norm.expanded(x, weight, norm).detach(), theirs.detach()) < error


def test_what_reads_an_expansion_may_write_on_it_where_nothing_cuts_it_off():
    g = torch.Generator().manual_seed(0)
    x, weight = pixels((2, 4, 4, 4), torch.float32, g), torch.randn(16, 4, 1, 1, generator=g, requires_grad=True)
    out = batch_norm.expanded(x, weight, norm_of(16, g))
    out += 1
    out.square().sum().backward()
    assert weight.grad.abs().sum() > 0


class Layer(conv._Quick):
    """A convolution with a BatchNorm that learns."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution, self.normalization = convolution, nn.BatchNorm2d(convolution.out_channels)
        self.geometry = conv._Geometry.of(convolution)


@pytest.mark.parametrize(("changed", "expands"), [
    ({}, True), ({"out_channels": 31}, False), ({"in_channels": 33, "out_channels": 132}, False),
    ({"bias": True}, False), ({"stride": 2}, False), ({"padding": 1}, False), ({"groups": 2}, False),
    ({"kernel_size": 3}, False),
])  # fmt: skip
def test_layers_by_one_pixel_from_few_channels_onto_many_more_expand(changed, expands, monkeypatch):
    monkeypatch.setattr(batch_norm, "_LARGE", 0)
    layer = Layer(nn.Conv2d(**({"in_channels": 8, "out_channels": 32, "kernel_size": 1, "bias": False} | changed)))
    x = torch.randn(2, layer.convolution.in_channels, 4, 4).contiguous(memory_format=torch.channels_last)
    assert ("_ExpandedBackward" in nodes(layer.passed(x))) == expands


def test_expansions_are_taken_where_they_learn_in_a_format_that_has_them_over_large_maps_alone(monkeypatch):
    layer = Layer(nn.Conv2d(8, 32, 1, bias=False))
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    expands = lambda given: "_ExpandedBackward" in nodes(layer.passed(given))  # noqa: E731
    assert not expands(x)
    monkeypatch.setattr(batch_norm, "_LARGE", 2 * 32 * 4 * 4)
    assert expands(x)
    assert not expands(x[:1])
    assert not expands(x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        assert expands(x)
        assert layer.passed(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert not expands(x)
    layer.normalization.momentum = None
    assert not expands(x)
    layer.normalization.momentum = 0.1
    with torch.no_grad():
        assert layer.passed(x).grad_fn is None
    layer.eval()
    assert not expands(x)
