"""The number format and the layout follow from the machine and the network, not from timings."""

import pytest
import torch
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.errors import UserError
from cleantune.features.precision import Precision, has_native_bfloat16, select_precision
from cleantune.utils import cpu

F, B = "float32", "bfloat16"


@pytest.fixture
def processor(monkeypatch):
    """Return a function that sets the flags of the processor."""
    return lambda flags: monkeypatch.setattr(cpu, "cpu_info", lambda: {"flags": flags})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    names = ("resnet", "mobilenet_v2", "vit", "convnext", "bert")
    return {name: open_backbone(save_tiny(name, tmp_path_factory.mktemp("m") / name)) for name in names}


@pytest.mark.parametrize(
    ("flags", "native"),
    [("avx2 avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx2 avx512f", False), ("", False)],
)
def test_native_bfloat16_follows_from_cpu_flags(flags, native, processor):
    processor(flags)
    assert has_native_bfloat16() is native
    assert not has_native_bfloat16("meta")


@pytest.mark.parametrize(
    ("name", "inference", "training"),
    [
        ("resnet", (B, True), (B, True)),
        ("mobilenet_v2", (B, True), (F, True)),
        ("convnext", (B, True), (B, True)),
        ("vit", (B, False), (B, False)),
        ("bert", (B, False), (B, False)),
    ],
)
def test_precision_follows_from_architecture(name, inference, training, backbones, processor):
    processor("avx512_bf16")
    for is_training, (dtype, channels_last) in ((False, inference), (True, training)):
        assert select_precision(backbones[name], training=is_training) == Precision(dtype, channels_last)
    processor("avx2")
    for is_training in (False, True):
        assert select_precision(backbones[name], training=is_training) == Precision(F, inference[1])


@pytest.mark.parametrize("flags", ["avx512_bf16", "avx2"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [F, B])
def test_requested_dtype_overrides_the_rule(flags, training, dtype, backbones, processor):
    processor(flags)
    assert select_precision(backbones["mobilenet_v2"], dtype, training=training) == Precision(dtype, True)


def test_unknown_precision_is_refused_with_the_nearest(backbones):
    with pytest.raises(UserError, match='did you mean "bfloat16"'):
        select_precision(backbones["vit"], "bfloat61")


def test_autocast_computes_in_the_dtype():
    layer = nn.Linear(3, 3)
    for dtype in (F, B):
        with Precision(dtype).autocast():
            assert layer(torch.zeros(1, 3)).dtype == getattr(torch, dtype)


def test_fingerprints_differ_by_dtype_and_layout():
    assert len({Precision(dtype, last).fingerprint for dtype in (F, B) for last in (False, True)}) == 4
