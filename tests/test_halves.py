"""A batch in two halves: the whole batch's features and gradients, to the bits of two ranks of one thread each."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from cleantune.backbones import open_backbone
from cleantune.config.augmentation import ImageAugmentation
from cleantune.data.augmentation import _warp, augment_images
from cleantune.kernels.to_delete.halves import (
    HALVES,
    PATIENCE,
    Learning,
    _thread_beside,
    at_rest,
    by_halves,
    half_of_the_threads,
    halved,
)
from cleantune.methods.protocol import View
from cleantune.training.models import LinearHead, Net

B = 7


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def small() -> nn.Module:
    """A convolutional net; its normalization has fixed statistics."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net[1].eval()
    return net


def batch() -> Tensor:
    return torch.randn(B, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, f: Tensor) -> list[Tensor]:
    net.zero_grad()
    (f * torch.linspace(-1, 1, f.numel()).view_as(f)).sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("within", [contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_halves_give_the_features_and_the_gradients_of_two_ranks_of_one_thread_each_bit_for_bit(
    within: type, two_threads: None
) -> None:
    net, x = small(), batch()
    with half_of_the_threads():
        f = halved(Learning(net), x, within)
        found = gradients(net, f)
    torch.set_num_threads(1)
    features, sums = [], None
    for share in HALVES:
        with within():
            own = net(share.part(x)).float()
        features.append(own)
    whole = torch.cat([own.detach() for own in features])
    weight = torch.linspace(-1, 1, whole.numel()).view_as(whole)
    for own, part in zip(features, torch.split(weight, [len(own) for own in features]), strict=True):
        net.zero_grad()
        (own * part).sum().backward()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
    assert sums is not None
    assert torch.equal(f, whole)
    assert all(torch.equal(a, b) for a, b in zip(found, sums, strict=True))


def test_the_gradients_are_those_of_the_whole_batch_and_add_up_over_forwards_and_steps() -> None:
    net, x = small(), batch()
    expected = gradients(net, net(x))
    for once, again in zip(expected, gradients(net, halved(Learning(net), x, contextlib.nullcontext)), strict=True):
        torch.testing.assert_close(again, once, rtol=1e-4, atol=1e-5)
    both = [halved(Learning(net), x, contextlib.nullcontext) for _ in range(2)]
    twice = gradients(net, both[0] + both[1])
    for once, again in zip(expected, twice, strict=True):
        torch.testing.assert_close(again, 2 * once, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_frozen_or_unused_gets_no_gradient_and_others_are_laid_out_as_they_are() -> None:
    net = small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net[0].requires_grad_(False)
    net.register_parameter("idle", nn.Parameter(torch.ones(2)))
    net.zero_grad()
    x = batch().contiguous(memory_format=torch.channels_last)
    halved(Learning(net), x, contextlib.nullcontext).sum().backward()  # type: ignore[no-untyped-call]
    assert net[0].weight.grad is None
    assert net.idle.grad is None
    assert net[3].weight.grad.stride() == net[3].weight.stride()


@pytest.mark.parametrize(("net", "expected"), [
    (nn.Linear(3, 3), True),
    (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), True),
    (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), False),
    (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)).eval(), True),
    (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), False),
    (nn.MultiheadAttention(8, 2, dropout=0.1), False),
    (nn.MultiheadAttention(8, 2), True),
])  # fmt: skip
def test_what_draws_luck_or_mixes_rows_is_not_at_rest(net: nn.Module, expected: bool) -> None:
    assert at_rest(net) is expected


def test_a_net_halves_what_learns_on_a_processor_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "cleantune.training.models.halved",
        lambda learning, x, within: seen.append(len(x)) or learning.backbone(x).float(),
    )
    backbone = open_backbone(small(), feature="pool", width=16)
    net = Net(backbone, LinearHead(16, 2)).train()
    net.features(batch())
    assert seen == [B]
    net.features(batch()[:1])
    with torch.no_grad():
        net.features(batch())
    net.freeze_batchnorm = False
    net.train().features(batch())
    net.freeze_batchnorm = True
    backbone.requires_grad_(False)
    net.train().features(batch())
    assert seen == [B]


def test_threads_that_begin_later_have_all_cores(two_threads: None) -> None:
    _thread_beside.cache_clear()
    net = small()
    halved(Learning(net), batch(), contextlib.nullcontext)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2


def test_a_net_that_is_not_halved_keeps_its_threads_and_one_that_shares_with_ranks_is_not_halved() -> None:
    restless = Net(open_backbone(nn.Sequential(small(), nn.Dropout(0.1)), feature="pool", width=16), LinearHead(16, 2))
    assert not restless.train().may_be_halved()
    whole = Net(open_backbone(small(), feature="pool", width=16), LinearHead(16, 2)).train()
    assert whole.may_be_halved()
    whole.sharing = HALVES[0]
    assert not whole.may_be_halved()
    assert not Net(None, LinearHead(16, 2)).train().may_be_halved()


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_views_made_by_halves_are_those_made_whole_to_the_bit(two_threads: None, view: View) -> None:
    pixels = (torch.rand(B, 3, 9, 12, generator=torch.Generator().manual_seed(2)) * 255).byte()
    whole, makers = augment_images(pixels, view, ImageAugmentation(), torch.Generator().manual_seed(4)), set()

    def warped(x: Tensor, geometry: Tensor) -> Tensor:
        makers.add(threading.get_ident())
        return _warp(x, geometry)

    with half_of_the_threads():
        halves = augment_images(pixels, view, ImageAugmentation(), torch.Generator().manual_seed(4))
        geometry = torch.eye(3).repeat(B, 1, 1)
        assert torch.equal(by_halves(warped, pixels.float(), geometry), _warp(pixels.float(), geometry))
    assert torch.equal(halves, whole)
    assert len(makers) == 2
    assert threading.get_ident() in makers
    makers.clear()
    by_halves(warped, pixels.float(), geometry)
    assert makers == {threading.get_ident()}


def test_an_error_in_either_half_is_raised_and_the_next_batch_is_made(two_threads: None) -> None:
    rows = torch.arange(4.0)

    def failing(at: int) -> Tensor:
        def make(part: Tensor) -> Tensor:
            if float(part[0]) == at:
                raise ValueError(str(at))
            return part + 1

        return by_halves(make, rows)

    with half_of_the_threads():
        for at in (0, 2):
            with pytest.raises(ValueError, match=str(at)):
                failing(at)
        assert torch.equal(failing(9), rows + 1)


def test_threads_and_pythons_patience_are_what_they_were_after_halves(two_threads: None) -> None:
    before = sys.getswitchinterval()
    with half_of_the_threads():
        assert (torch.get_num_threads(), sys.getswitchinterval()) == (1, pytest.approx(PATIENCE))
    assert (torch.get_num_threads(), sys.getswitchinterval()) == (2, before)
