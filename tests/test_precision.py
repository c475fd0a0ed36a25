import json
import math

import pytest
import torch
from tiny import save_tiny
from torch import nn

from cleantune.backbones import open_backbone
from cleantune.errors import UserError
from cleantune.features import benchmark, precision
from cleantune.features.precision import Precision, probe_precision


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(save_tiny("resnet", tmp_path_factory.mktemp("m") / "r"))


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def hurried(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "_SECONDS_A_PROBE", 0.0)


def timed(monkeypatch, seconds: dict[tuple[str, bool], float], gain: float = 2.0) -> None:
    """A machine on which each precision takes what the table says."""

    def race(runs, **_):
        return {c: seconds[(c.dtype, c.channels_last)] if isinstance(c, Precision) else 1.0 for c in runs}

    monkeypatch.setattr(precision, "race", race)
    monkeypatch.setattr(precision, "matmul_gain", lambda device: gain)


F, B = "float32", "bfloat16"


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        ({(F, False): 1, (F, True): 1, (B, False): 1, (B, True): 1}, (F, False)),
        ({(F, False): 1, (F, True): 0.97, (B, False): 0.9, (B, True): 0.85}, (F, False)),
        ({(F, False): 1, (F, True): 0.5, (B, False): 0.9, (B, True): 0.45}, (F, True)),
        ({(F, False): 1, (F, True): 0.5, (B, False): 0.9, (B, True): 0.2}, (B, True)),
        ({(F, False): 1, (F, True): 2, (B, False): 0.3, (B, True): 0.9}, (B, False)),
    ],
)
def test_the_fastest_is_chosen_and_a_tie_falls_to_plain_float32(table, chosen, backbone, monkeypatch):
    timed(monkeypatch, table)
    picked = probe_precision(backbone, X)
    assert (picked.dtype, picked.channels_last) == chosen
    assert "takes" in picked.why


def test_who_is_far_behind_is_timed_twice_and_the_others_go_on(monkeypatch):
    clock, runs = [0.0], {"near": 0, "first": 0, "behind": 0, "handicapped": 0}
    takes = {"near": 1.2, "first": 1.0, "behind": 1.6, "handicapped": 1.2}
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(benchmark, "_SECONDS_A_PROBE", 1e9)

    def run(name):
        runs[name] += 1
        clock[0] += takes[name]

    found = benchmark.race(
        {name: lambda name=name: run(name) for name in takes}, rounds=4, handicap=lambda n: 1 + (n == "handicapped")
    )
    assert runs == {"near": 5, "first": 5, "behind": 2, "handicapped": 2}
    assert found == pytest.approx(takes)


def test_the_seconds_of_a_sample_are_not_those_of_a_pass_with_few(backbone, monkeypatch):
    """A pass that costs 0.03 s whatever it carries, and 0.001 s a sample."""
    monkeypatch.setattr(precision, "_pass", lambda net, x, chosen, training: len(x))
    monkeypatch.setattr(precision, "race", lambda runs, rounds=6: {k: 0.03 + 0.001 * n for k, n in runs.items()})
    x = torch.zeros(256, 3, 8, 8)
    assert precision.seconds_a_sample(backbone, x, Precision()) < 0.0013
    assert precision.seconds_a_sample(backbone, x, Precision(), 0.002) == pytest.approx(0.0019375)  # of 32
    assert precision.seconds_a_sample(backbone, x, Precision(), 0.1) == pytest.approx(0.016)  # of 2


@pytest.mark.parametrize("last", [False, True])
def test_a_settled_layout_is_taken_and_only_the_format_measured(last, backbone, tmp_path, monkeypatch):
    timed(monkeypatch, {(F, last): 1, (B, last): 0.5})
    picked = probe_precision(backbone, X, training=True, layout=last, memory=tmp_path)
    assert (picked.dtype, picked.channels_last) == (B, last)
    timed(monkeypatch, {(F, False): 1, (B, False): 9, (F, True): 9, (B, True): 9})
    assert probe_precision(backbone, X, training=True, layout=last, memory=tmp_path) == picked
    assert probe_precision(backbone, X, training=True, memory=tmp_path).dtype == F  # another question


def test_training_takes_bfloat16_for_less_gain_than_features_do(backbone, monkeypatch):
    timed(monkeypatch, {(F, False): 1, (F, True): 1, (B, False): 0.85, (B, True): 0.85})
    assert probe_precision(backbone, X).dtype == F
    assert probe_precision(backbone, X, training=True).dtype == B
    timed(monkeypatch, {(F, False): 1, (F, True): 1, (B, False): 0.97, (B, True): 0.97})
    assert probe_precision(backbone, X, training=True).dtype == F


def test_slow_bfloat16_is_never_tried_in_the_network(backbone, monkeypatch):
    timed(monkeypatch, {(F, False): 1, (F, True): 0.5}, gain=0.01)
    picked = probe_precision(backbone, X)
    assert picked.dtype == "float32"
    assert "bfloat16 matmul runs at 0.01" in picked.why


def test_a_forced_format_is_taken_and_only_the_layout_measured(backbone, monkeypatch):
    timed(monkeypatch, {(B, False): 1, (B, True): 0.5}, gain=0.01)
    assert probe_precision(backbone, X, "bfloat16") == Precision(
        "bfloat16", True, "as set; bfloat16 channels-last takes 0.50 of the time of bfloat16 contiguous"
    )


def test_a_choice_is_remembered(backbone, tmp_path, monkeypatch):
    timed(monkeypatch, {(F, False): 1, (F, True): 0.5, (B, False): 1, (B, True): 1})
    first = probe_precision(backbone, X, memory=tmp_path)
    timed(monkeypatch, {(F, False): 1, (F, True): 9, (B, False): 1, (B, True): 0.1})
    assert probe_precision(backbone, X, memory=tmp_path) == first
    assert probe_precision(backbone, X, memory=tmp_path, training=True) != first
    file = next(tmp_path.iterdir())
    assert set(json.loads(file.read_text())) == {"dtype", "channels_last", "why", "backend", "streams", "compiled"}


@pytest.mark.parametrize("training", [False, True])
def test_probing_leaves_network_gradients_and_generator_as_they_were(training, backbone):
    state = {k: v.clone() for k, v in backbone.state_dict().items()}
    rng = torch.random.get_rng_state()
    picked = probe_precision(backbone, X, training=training)
    assert picked.dtype in ("float32", "bfloat16")
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in backbone.parameters())
    assert torch.equal(rng, torch.random.get_rng_state())
    assert not backbone.training


def test_texts_are_probed_without_a_layout(tmp_path):
    text = open_backbone(save_tiny("bert", tmp_path / "b"))
    ids = torch.ones(4, 6, dtype=torch.long)
    assert not probe_precision(text, {"input_ids": ids, "attention_mask": ids}).channels_last


def test_unknown_setting_is_refused_with_the_nearest(backbone):
    with pytest.raises(UserError, match='did you mean "bfloat16"'):
        probe_precision(backbone, X, "bfloat61")


def test_autocast_computes_in_the_format():
    layer = nn.Linear(3, 3)
    with Precision("bfloat16").autocast():
        assert layer(torch.zeros(1, 3)).dtype == torch.bfloat16
    with Precision("float32").autocast():
        assert layer(torch.zeros(1, 3)).dtype == torch.float32


def test_fingerprint_tells_format_and_layout_but_not_the_reason():
    prints = {Precision(d, c, w).fingerprint for d in (F, B) for c in (False, True) for w in ("a", "b")}
    assert len(prints) == 4


def test_what_a_pass_costs_whatever_it_carries_does_not_leave_few_samples_to_time(backbone, monkeypatch):
    """A pass that costs 0.07 s whatever it carries, and 0.004 s a sample: 45 samples take a quarter of a second."""
    monkeypatch.setattr(precision, "_pass", lambda net, x, chosen, training: len(x))
    monkeypatch.setattr(precision, "race", lambda runs, rounds=6: {k: 0.07 + 0.004 * n for k, n in runs.items()})
    x = torch.zeros(256, 3, 8, 8)
    assert len(precision._part(backbone, x, True)) == 45
    assert len(precision._part(backbone, x[:20], True)) == 20
    assert len(precision._part(backbone, x[:1], True)) == 1
    monkeypatch.setattr(precision, "race", lambda runs, rounds=6: {k: 0.2 * n for k, n in runs.items()})
    assert len(precision._part(backbone, x, True)) == 1


class OnItsDevice(nn.Module):
    """A network that refuses inputs from elsewhere, as a GPU does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(12, 2, device="meta"))
        self.seen = []

    def forward(self, inputs):
        x = inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"].float()
        assert x.device == self.weight.device
        self.seen.append(len(x))
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inputs", [torch.ones(6, 3, 2, 2), {"input_ids": torch.ones(6, 12, dtype=torch.int64)}])
def test_an_example_on_the_cpu_is_timed_where_the_network_is(inputs, training):
    network = OnItsDevice()
    assert probe_precision(network, inputs, "float32", training=training).dtype == "float32"
    assert max(network.seen) == 6


def test_training_is_timed_with_no_more_samples_than_a_step_has(backbone, monkeypatch):
    counts = []
    monkeypatch.setattr(precision, "_pass", lambda net, x, chosen, training: counts.append(len(x)) or chosen)
    monkeypatch.setattr(precision, "race", lambda runs, *given, **more: dict.fromkeys(runs, 1e-9))
    for training, most in ((True, 64), (False, 200)):
        counts.clear()
        probe_precision(backbone, torch.zeros(200, 3, 2, 2), "float32", training=training)
        assert max(counts) == most


def test_large_products_are_timed_only_where_small_ones_leave_hope(monkeypatch):
    for small, expected, sizes in ((0.05, 0.05, [192]), (0.99, 3.0, [192, 768])):
        asked, gains = [], {192: small, 768: 3.0}
        monkeypatch.setattr(benchmark, "_gain", lambda _, n, gains=gains, asked=asked: asked.append(n) or gains[n])
        benchmark.matmul_gain.cache_clear()
        assert benchmark.matmul_gain("cpu") == expected
        assert asked == sizes
    benchmark.matmul_gain.cache_clear()


def test_few_samples_get_fewer_rounds_of_timing(backbone, monkeypatch):
    monkeypatch.setattr(benchmark, "_SECONDS_A_PROBE", 1e9)
    given = {}
    own = benchmark.race

    def race(runs, **settings):
        if any(isinstance(c, Precision) for c in runs):
            given[count] = settings["seconds"]
            settings["seconds"] = 0.0
        return own(runs, **settings)

    monkeypatch.setattr(precision, "race", race)
    for count in (100, 1000, None):
        probe_precision(backbone, X, count=count)
    assert 0 < given[100] < given[1000] < given[None] == math.inf
