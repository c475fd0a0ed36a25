"""OpenVINO gives the features of torch, whatever streams, views and weights."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_samples import fake_images, fake_texts
from tiny import IMAGES, TEXTS, save_tiny

from cleantune.backbones import open_backbone
from cleantune.data.model_inputs import ImageInputs, make_model_inputs, raw_inputs
from cleantune.features import openvino, shards
from cleantune.features.backend import InferenceBackend
from cleantune.features.encoder import Encoder
from cleantune.features.extract import ViewSpec, extract
from cleantune.features.openvino import OpenVINOEncoder
from cleantune.features.precision import Precision

pytestmark = pytest.mark.skipif(not openvino.is_installed(), reason="needs openvino")

TORCH, OPENVINO = InferenceBackend("torch"), InferenceBackend("openvino")
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Relative L2 error between the backends in one number format, of small networks."""


def inputs_of(backbone, cache, count=50):
    samples = fake_images(count) if backbone.architecture.kind == "image" else fake_texts(count)
    return make_model_inputs(samples, backbone.preprocess, cache)


def relative_error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_backends_agree_on_every_architecture(name, tmp_path):
    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = inputs_of(backbone, tmp_path, 40)
    for dtype, tolerance in TOLERANCE.items():
        expected, actual = (
            extract(backbone, prepared, InferenceBackend(backend, Precision(dtype)), tmp_path, f"{backend}-{dtype}")
            for backend in ("torch", "openvino")
        )
        assert relative_error(actual, expected) < tolerance, dtype


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_streams_and_resume_leave_features_bitwise_equal(name, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = inputs_of(backbone, tmp_path)
    one = extract(backbone, prepared, OPENVINO, tmp_path, "one")
    two = extract(backbone, prepared, replace(OPENVINO, num_streams=2), tmp_path, "two")
    assert np.array_equal(one, two)
    (tmp_path / "features-two" / "index.json").unlink()
    (tmp_path / "features-two" / "000001.npy").unlink()
    assert np.array_equal(one, extract(backbone, prepared, OPENVINO, tmp_path, "two"))


def test_augmented_views_agree(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    prepared, weak = inputs_of(backbone, tmp_path), ViewSpec("weak", 0)
    expected = extract(backbone, prepared, TORCH, tmp_path, "torch", view=weak)
    actual = extract(backbone, prepared, OPENVINO, tmp_path, "openvino", view=weak)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_changed_weights_are_compiled_again(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    prepared = inputs_of(backbone, tmp_path)
    before = np.asarray(extract(backbone, prepared, OPENVINO, tmp_path, "a"))
    with torch.no_grad():
        next(backbone.parameters()).mul_(2)
    after, expected = (extract(backbone, prepared, b, tmp_path, k) for b, k in ((OPENVINO, "b"), (TORCH, "c")))
    assert relative_error(after, before) > 0.01
    assert relative_error(after, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["vit", "resnet", "bert"])
def test_encoder_keeps_the_weights_it_was_compiled_with(name, tmp_path):
    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    x = raw_inputs(inputs_of(backbone, tmp_path, 4), torch.arange(4))
    encoder = OpenVINOEncoder(backbone, x, "float32", 1)
    [(_, before)] = encoder.stream([(0, x)])
    with torch.no_grad():
        for p in backbone.parameters():
            p.mul_(2)
    [(_, after)] = encoder.stream([(0, x)])
    assert torch.equal(before, after)


def test_stream_yields_before_the_last_batch_is_read(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    x = inputs_of(backbone, tmp_path, 40).eval_view(torch.arange(40))
    encoder, read = OpenVINOEncoder(backbone, x, "float32", 1), []

    def items():
        for k in range(100):
            read.append(k)
            yield k, x

    stream = encoder.stream(items())
    first, f = next(stream)
    assert first == 0
    assert len(read) < 100
    rest = list(stream)
    assert [k for k, _ in rest] == list(range(1, 100))
    assert all(torch.equal(f, other) for _, other in rest)


def test_bytes_are_normalized_by_channel(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    backbone.preprocess = replace(backbone.preprocess, mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5))
    prepared = inputs_of(backbone, tmp_path)
    actual = extract(backbone, prepared, OPENVINO, tmp_path, "openvino")
    assert relative_error(actual, extract(backbone, prepared, TORCH, tmp_path, "torch")) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "bert"])
def test_tuned_backbone_is_refreshed_by_openvino(name, tmp_path, monkeypatch):
    from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
    from cleantune.training.heads import LinearHead
    from cleantune.training.models import Model
    from cleantune.training.trainer import Trainer

    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = inputs_of(backbone, tmp_path, 37)
    source, features = SampleBatches(prepared), {}
    for backend in (TORCH, OPENVINO):
        if backend is OPENVINO and isinstance(prepared, ImageInputs):
            monkeypatch.setattr(prepared, "eval_view", None)  # it is given bytes, which it normalizes
        net = Model(backbone, LinearHead(backbone.width, 3), inference=backend)
        split = SplitData(torch.arange(37) % 3, FeatureBatches(torch.zeros(37, backbone.width)), source)
        run = Trainer([net], {"train": split}, 3, 0, lambda f, k: LinearHead(backbone.width, 3))
        run.predictor.weights_changed(backbone=True)
        run.predictor.refresh_features(run.models)
        features[backend.name] = run.splits["train"].features.plain
        assert run.cost.forward_passes == 37
    assert relative_error(features["openvino"], features["torch"]) < TOLERANCE["float32"]


def test_throughput_counts_samples_per_second(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    x = raw_inputs(inputs_of(backbone, tmp_path, 20), torch.arange(20))
    assert Encoder(backbone, OPENVINO).measure_throughput(x) > 20


OFFLINE = """
import socket, sys

def refuse(*args, **options):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
try:
    import openvino_telemetry
    openvino_telemetry.Telemetry.__init__ = refuse
except ImportError:
    pass
import torch
from cleantune.backbones import open_backbone
from cleantune.features.openvino import OpenVINOEncoder

OpenVINOEncoder(open_backbone(sys.argv[1]), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "float32", 1)
"""


def test_conversion_sends_no_telemetry(tmp_path):
    folder = save_tiny("resnet", tmp_path / "m")
    process = subprocess.run([sys.executable, "-c", OFFLINE, str(folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
