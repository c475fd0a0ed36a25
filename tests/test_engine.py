import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_samples import fake_images, fake_texts
from tiny import IMAGES, TEXTS, save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.data.model_inputs import ImageInputs, make_model_inputs
from cleantune.errors import UserError
from cleantune.features import cache, openvino
from cleantune.features.cache import ViewSpec, extract, features_key
from cleantune.features.openvino import MAX_REL_ERROR, select_backend
from cleantune.features.precision import Precision

needs_openvino = pytest.mark.skipif(not openvino.installed(), reason="needs openvino")


@pytest.fixture(autouse=True)
def forgotten():
    yield
    openvino._compiled.clear()


def prepared_of(backbone, cache, count=50):
    samples = fake_images(count) if backbone.architecture.kind == "image" else fake_texts(count)
    return make_model_inputs(samples, backbone.preprocess, cache)


def error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@needs_openvino
@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_engines_agree_on_every_architecture(name, tmp_path):
    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = prepared_of(backbone, tmp_path, 40)
    for dtype in ("float32", "bfloat16"):
        theirs = extract(backbone, prepared, Precision(dtype), tmp_path, f"torch-{dtype}")
        ours = extract(backbone, prepared, Precision(dtype, backend="openvino"), tmp_path, f"openvino-{dtype}")
        assert error(ours, theirs) < MAX_REL_ERROR[dtype], dtype


@needs_openvino
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_streams_and_kills_leave_the_bits_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_ROWS", 16)
    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = prepared_of(backbone, tmp_path)
    one = extract(backbone, prepared, Precision(backend="openvino"), tmp_path, "one")
    two = extract(backbone, prepared, Precision(backend="openvino", streams=2), tmp_path, "two")
    assert np.array_equal(one, two)
    (tmp_path / "features-two" / "index.json").unlink()
    (tmp_path / "features-two" / "000001.npy").unlink()
    assert np.array_equal(one, extract(backbone, prepared, Precision(backend="openvino"), tmp_path, "two"))


@needs_openvino
def test_augmented_views_are_made_by_the_engine_too(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    prepared, weak = prepared_of(backbone, tmp_path), ViewSpec("weak", 0)
    theirs = extract(backbone, prepared, Precision(), tmp_path, "torch", None, weak)
    ours = extract(backbone, prepared, Precision(backend="openvino"), tmp_path, "openvino", None, weak)
    assert error(ours, theirs) < MAX_REL_ERROR["float32"]


@needs_openvino
def test_new_weights_are_compiled_anew(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    prepared, way = prepared_of(backbone, tmp_path), Precision(backend="openvino")
    before = np.asarray(extract(backbone, prepared, way, tmp_path, "a"))
    with torch.no_grad():
        next(backbone.parameters()).mul_(2)
    after, torchs = (extract(backbone, prepared, p, tmp_path, k) for p, k in ((way, "b"), (Precision(), "c")))
    assert error(after, before) > 0.01
    assert error(after, torchs) < MAX_REL_ERROR["float32"]


@needs_openvino
def test_telemetry_is_off(tmp_path):
    openvino.openvino()
    assert sys.modules["openvino_telemetry"] is None
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")


@pytest.fixture
def probed(tmp_path, monkeypatch):
    """A small network, and a machine on which OpenVINO takes the given share of torch's time."""
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    x = prepared_of(backbone, tmp_path, 4).eval_view(torch.arange(4))

    def at(share, seconds=1.0):
        monkeypatch.setattr(openvino, "seconds_a_sample", lambda *given: seconds)
        monkeypatch.setattr(openvino, "_timed", lambda network, some, streams: share * seconds)
        return backbone, x

    return at


@pytest.fixture
def threads():
    """Whatever a test sets, the number is what it was afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_openvino
def test_auto_takes_what_is_faster_says_why_and_remembers_it(probed, tmp_path):
    backbone, x = probed(0.5)
    picked = select_backend(backbone, x, precision="float32", count=1000, memory=tmp_path / "memory")
    assert picked.backend == "openvino"
    assert "0.50 of torch's time" in picked.why
    stored = [json.loads(p.read_text()) for p in (tmp_path / "memory").glob("engine-*.json")]
    assert [s["chosen"]["engine"] for s in stored] == ["openvino"]
    backbone, x = probed(2.0)
    assert select_backend(backbone, x, precision="float32", count=1000, memory=tmp_path / "memory") == picked
    slower = select_backend(backbone, x, precision="float32", count=1000)
    assert slower.backend == "torch"
    assert "2.00 of torch's time" in slower.why


@pytest.fixture
def both_formats(probed, monkeypatch):
    """A machine on which torch is best in float32, and OpenVINO in bfloat16 takes the given share of its float32."""

    def at(share):
        backbone, x = probed(0.5)
        monkeypatch.setattr(openvino, "probe_precision", lambda *given, **more: Precision())
        monkeypatch.setattr(openvino, "formats", lambda *given: ["float32", "bfloat16"])

        def timed(network, some, streams):
            hint = network.network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            return {"f32": 0.5, "bf16": 0.5 * share}[hint]

        monkeypatch.setattr(openvino, "_timed", timed)
        return backbone, x

    return at


@needs_openvino
@pytest.mark.parametrize(("share", "dtype"), [(0.5, "bfloat16"), (0.9, "float32")])
def test_openvino_takes_bfloat16_where_it_pays_even_if_torch_does_not(both_formats, share, dtype):
    picked = select_backend(*both_formats(share), count=1000)
    assert (picked.backend, picked.dtype) == ("openvino", dtype)
    assert f"OpenVINO in {dtype}" in picked.why


@needs_openvino
def test_a_format_in_which_features_differ_leaves_the_other_one(both_formats, monkeypatch):
    monkeypatch.setattr(openvino, "_error", lambda *given: 1.0 if given[-1].dtype == "bfloat16" else 0.0)
    picked = select_backend(*both_formats(0.5), count=1000)
    assert (picked.backend, picked.dtype) == ("openvino", "float32")


@needs_openvino
@pytest.mark.parametrize(("share", "streams"), [(0.85, 2), (0.75, 1)])
def test_one_stream_is_taken_only_where_it_is_much_faster(probed, threads, monkeypatch, share, streams):
    """A stream on all cores waits for whichever of them something else holds up."""
    backbone, x = probed(0.5)
    torch.set_num_threads(2)
    monkeypatch.setattr(openvino, "_timed", lambda network, some, streams: 0.1 * (share if streams == 1 else 1))
    assert select_backend(backbone, x, precision="float32", count=1000).streams == streams


@needs_openvino
@pytest.mark.parametrize(("later", "streams"), [(0.1, 2), (0.3, 1)])
def test_several_streams_that_lose_are_timed_again(probed, threads, monkeypatch, later, streams):
    backbone, x = probed(0.5)
    torch.set_num_threads(2)
    told = iter([0.3, 0.15, later])
    monkeypatch.setattr(openvino, "_timed", lambda network, some, streams: next(told))
    assert select_backend(backbone, x, precision="float32", count=1000).streams == streams
    assert next(told, None) is None


@needs_openvino
@pytest.mark.parametrize(("cores", "share", "engine_"), [(2, 1.1, "openvino"), (2, 1.2, "torch"), (1, 1.0, "torch")])
def test_streams_may_take_longer_than_torch_which_waits_for_whichever_core_decodes(
    probed, threads, monkeypatch, cores, share, engine_
):
    backbone, x = probed(1.0)
    torch.set_num_threads(cores)
    monkeypatch.setattr(openvino, "_timed", lambda network, some, streams: share if streams == cores else 2.0)
    assert select_backend(backbone, x, precision="float32", count=1000).backend == engine_


@needs_openvino
@pytest.mark.parametrize("count", [4, 6])
def test_a_process_with_fewer_threads_makes_the_same_choice(probed, tmp_path, threads, count):
    """Ranks on one machine share its cores; what they and one process compute must not differ by the program."""
    backbone, x = probed(0.5)
    torch.set_num_threads(2)
    first = select_backend(backbone, x, precision="float32", count=count, memory=tmp_path / "memory")
    backbone, x = probed(0.5, seconds=100.0 if count == 4 else 0.01)  # would now fall to the other side
    torch.set_num_threads(1)
    again = select_backend(backbone, x, precision="float32", count=count, memory=tmp_path / "memory")
    assert (again.backend, again.dtype) == (first.backend, first.dtype) == (("torch", "openvino")[count > 5], "float32")
    assert again.streams == 1


@needs_openvino
def test_a_choice_that_did_not_pay_is_made_anew_for_more_samples(probed, tmp_path):
    backbone, x = probed(0.5)
    for count, engine_ in ((4, "torch"), (1000, "openvino"), (4, "torch"), (1000, "openvino")):
        picked = select_backend(backbone, x, precision="float32", count=count, memory=tmp_path / "memory")
        assert picked.backend == engine_


@needs_openvino
def test_few_samples_are_not_worth_a_conversion(probed):
    backbone, x = probed(0.01)
    assert select_backend(backbone, x, precision="float32", count=4).backend == "torch"
    assert select_backend(backbone, x, precision="float32", count=6).backend == "openvino"
    assert select_backend(backbone, x, precision="float32", backend="torch", count=6).backend == "torch"
    assert select_backend(backbone, x, precision="float32", backend="openvino", count=1).backend == "openvino"


def test_without_openvino_auto_is_torch_and_asking_for_it_says_how_to_get_it(probed, monkeypatch):
    monkeypatch.setattr(openvino, "installed", lambda: False)
    backbone, x = probed(0.01)
    assert select_backend(backbone, x, precision="float32", count=1000).backend == "torch"
    with pytest.raises(UserError, match=r"pip install 'cleantune\[cpu\]'"):
        select_backend(backbone, x, backend="openvino")


def test_unknown_engine_is_refused_with_the_nearest(probed):
    with pytest.raises(UserError, match='did you mean "openvino"'):
        select_backend(*probed(1.0), backend="openvono")


@needs_openvino
def test_a_network_that_cannot_be_converted_falls_back_and_is_refused_when_forced(tmp_path, monkeypatch):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x.mean(1)[:, :3, :3]).real

    preprocess = open_backbone(save_tiny("resnet", tmp_path / "m")).preprocess
    backbone = open_backbone(Odd(), feature="eigenvalues", width=3, preprocess=preprocess)
    x = prepared_of(backbone, tmp_path, 4).eval_view(torch.arange(4))
    monkeypatch.setattr(openvino, "seconds_a_sample", lambda *given: 1.0)
    picked = select_backend(backbone, x, precision="float32", count=1000)
    assert picked.backend == "torch"
    assert "cannot take this network" in picked.why
    with pytest.raises(UserError, match="cannot be converted"):
        select_backend(backbone, x, precision="float32", backend="openvino")


@needs_openvino
def test_features_that_differ_are_refused(probed, monkeypatch):
    backbone, x = probed(0.5)
    true = openvino.converted

    def wrong(net, example):
        with torch.no_grad():
            next(net.parameters()).mul_(1.5)
        try:
            return true(net, example)
        finally:
            with torch.no_grad():
                next(net.parameters()).div_(1.5)

    monkeypatch.setattr(openvino, "converted", wrong)
    picked = select_backend(backbone, x, precision="float32", count=1000)
    assert picked.backend == "torch"
    assert "differ from torch's" in picked.why


def test_the_key_knows_the_engine(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    ways = [Precision(), Precision(backend="openvino"), Precision("bfloat16", backend="openvino")]
    assert len({features_key(backbone, "data", way) for way in ways}) == 3


@needs_openvino
@pytest.mark.parametrize("name", ["mobilenet_v2", "bert"])
def test_features_of_a_tuned_backbone_are_made_by_the_engine_and_counted(name, tmp_path, monkeypatch):
    from cleantune.training.batches import FeatureBatches, SampleBatches
    from cleantune.training.checkpoint import SplitData
    from cleantune.training.models import LinearHead, Net
    from cleantune.training.trainer import Trainer

    backbone = open_backbone(save_tiny(name, tmp_path / "m"))
    prepared = prepared_of(backbone, tmp_path, 37)
    source, made = SampleBatches(prepared), {}
    for program in ("torch", "openvino"):
        if program == "openvino" and isinstance(prepared, ImageInputs):
            monkeypatch.setattr(prepared, "plain", None)  # it is given bytes, which it normalizes
        net = Net(backbone, LinearHead(backbone.width, 3), eval_precision=Precision(backend=program))
        split = SplitData(torch.arange(37) % 3, FeatureBatches(torch.zeros(37, backbone.width)), source)
        run = Trainer([net], {"train": split}, 3, 0, lambda f, k: LinearHead(backbone.width, 3))
        run.features_stale = True
        run._refresh()
        made[program] = run.splits["train"].features.plain
        assert run.cost.forward_passes == 37
    assert error(made["openvino"], made["torch"]) < MAX_REL_ERROR["float32"]


@needs_openvino
def test_features_come_while_later_batches_are_still_to_be_asked_for(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    x = prepared_of(backbone, tmp_path, 40).eval_view(torch.arange(40))
    network, asked = openvino.OpenVINOEncoder(backbone, x, Precision(backend="openvino")), []

    def items():
        for k in range(100):
            asked.append(k)
            yield k, x

    came = network.stream(items())
    first, f = next(came)
    assert first == 0
    assert len(asked) < 100
    rest = list(came)
    assert [k for k, _ in rest] == list(range(1, 100))
    assert all(torch.equal(f, other) for _, other in rest)


@needs_openvino
def test_bytes_are_normalized_in_the_network_channel_by_channel(tmp_path):
    backbone = open_backbone(save_tiny("resnet", tmp_path / "m"))
    backbone.preprocess = replace(backbone.preprocess, mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5))
    prepared = prepared_of(backbone, tmp_path)
    ours = extract(backbone, prepared, Precision(backend="openvino"), tmp_path, "openvino")
    assert error(ours, extract(backbone, prepared, Precision(), tmp_path, "torch")) < MAX_REL_ERROR["float32"]


@needs_openvino
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_a_remembered_choice_is_found_by_one_sample(name, tmp_path):
    backbone, memory = open_backbone(save_tiny(name, tmp_path / "m")), tmp_path / "memory"
    prepared = prepared_of(backbone, tmp_path, 8)
    asked = {"precision": "float32", "engine": "openvino", "count": 8, "memory": memory}
    one = prepared.eval_view(torch.arange(1))
    assert openvino.remembered(backbone, one, **asked) is None
    assert select_backend(backbone, prepared.eval_view(torch.arange(8)), **asked) == openvino.remembered(
        backbone, one, **asked
    )
