"""The inference backend follows from what is installed and from the work, and must agree with torch."""

import json
import logging

import pytest
import torch
from fake_samples import fake_images
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.data.model_inputs import make_model_inputs, raw_inputs
from cleantune.errors import UserError
from cleantune.features import backend as backend_module
from cleantune.features import openvino
from cleantune.features.backend import (
    ComputeConfig,
    InferenceBackend,
    count_flops,
    is_worth_converting,
    select_backend,
)
from cleantune.features.precision import Precision

needs_openvino = pytest.mark.skipif(not openvino.is_installed(), reason="needs openvino")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return a small network and an example batch."""
    backbone = open_backbone(save_tiny("resnet", tmp_path_factory.mktemp("m") / "r"))
    prepared = make_model_inputs(fake_images(4), backbone.preprocess, tmp_path_factory.mktemp("cache"))
    example = raw_inputs(prepared, torch.arange(4))
    return backbone, lambda: example


class Eigenvalues(nn.Module):
    """A network that OpenVINO cannot convert."""

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)[:, :3, :3]).real


@pytest.fixture
def odd(network):
    backbone, example = network
    return open_backbone(Eigenvalues(), feature="eigenvalues", width=3, preprocess=backbone.preprocess), example


@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_takes_openvino_for_many_samples(dtype, network):
    few = select_backend(*network, precision=dtype, num_samples=100)
    many = select_backend(*network, precision=dtype, num_samples=backend_module.MIN_SAMPLES)
    assert (few.name, many.name) == ("torch", "openvino")
    assert few.precision == many.precision == Precision(dtype, channels_last=True)
    assert many.num_streams == torch.get_num_threads()


@needs_openvino
def test_auto_takes_openvino_for_few_samples_of_large_network(network, monkeypatch):
    monkeypatch.setattr(backend_module, "MIN_FLOPS", 90 * count_flops(network[0], network[1]()))
    names = [select_backend(*network, precision="float32", num_samples=n).name for n in (80, 100)]
    assert names == ["torch", "openvino"]


def test_flops_of_one_sample_are_counted(network):
    backbone, example = network
    layer = open_backbone(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), feature="linear", width=5)
    assert count_flops(layer, torch.zeros(7, 3, 2, 2)) == 2 * 12 * 5
    assert count_flops(backbone, example()) == count_flops(backbone, example()[:1]) > 1000


def test_no_samples_are_not_worth_a_conversion(network):
    assert not is_worth_converting(*network, 0)


def test_selection_repeats_exactly(network):
    chosen = {select_backend(*network, num_samples=n) for n in (10, 10, 6000, 6000)}
    assert len(chosen) == (2 if openvino.is_installed() else 1)


def test_requested_backend_overrides_the_rule(network):
    assert select_backend(*network, backend="torch", num_samples=10**6).name == "torch"
    if openvino.is_installed():
        assert select_backend(*network, precision="float32", backend="openvino", num_samples=1).name == "openvino"


def test_missing_openvino_is_torch_or_an_error(network, monkeypatch):
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    assert select_backend(*network, num_samples=10**6).name == "torch"
    with pytest.raises(UserError, match=r"pip install 'cleantune\[cpu\]'"):
        select_backend(*network, backend="openvino")


def test_unknown_backend_is_refused_with_the_nearest(network):
    with pytest.raises(UserError, match='did you mean "openvino"'):
        select_backend(*network, backend="openvono")


@needs_openvino
def test_unconvertible_network_is_left_to_torch(odd, caplog):
    with caplog.at_level(logging.WARNING):
        assert select_backend(*odd, precision="float32", num_samples=10**6).name == "torch"
    assert "cannot convert this network" in caplog.text
    with pytest.raises(UserError, match=r"cannot convert this network .*; use --backend torch"):
        select_backend(*odd, precision="float32", backend="openvino")


@needs_openvino
def test_cached_features_need_no_conversion(odd):
    asked = []
    chosen = select_backend(
        *odd, precision="float32", num_samples=10**6, is_cached=lambda backend: asked.append(backend) or True
    )
    assert chosen.name == "openvino"
    assert asked == [chosen]


@needs_openvino
def test_disagreeing_features_are_left_to_torch(tmp_path, monkeypatch, caplog):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m", seed=1))
    prepared = make_model_inputs(fake_images(4), backbone.preprocess, tmp_path)
    convert = openvino.convert

    def convert_other_weights(net, example):
        weight = next(net.parameters())
        with torch.no_grad():
            weight.mul_(1.5)
        try:
            return convert(net, example)
        finally:
            with torch.no_grad():
                weight.div_(1.5)

    monkeypatch.setattr(openvino, "convert", convert_other_weights)
    example = raw_inputs(prepared, torch.arange(4))
    with caplog.at_level(logging.WARNING):
        assert select_backend(backbone, lambda: example, precision="float32", num_samples=10**6).name == "torch"
    assert "differ from those of torch" in caplog.text


def test_compute_config_survives_json():
    backend = InferenceBackend("openvino", Precision("bfloat16", True), 2)
    config = ComputeConfig(backend, Precision("float32", True), compile=True)
    assert ComputeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    others = [ComputeConfig(), ComputeConfig(backend), ComputeConfig(compile=True), config]
    assert len({other.fingerprint for other in others}) == 4
