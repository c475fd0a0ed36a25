"""Contract of all methods in all scopes, on small problems."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cleantune.backbones import Backbone, open_backbone
from cleantune.data import Data, Rows
from cleantune.features.precision import Precision
from cleantune.functional.standardize import mean_and_std
from cleantune.methods import METHODS
from cleantune.methods.protocol import EpochMetrics, Method, Phase, Scope, Stage
from cleantune.methods.robust import Robust
from cleantune.training.batches import FeatureBatches, SampleBatches, SplitData
from cleantune.training.checkpoint import Checkpoint
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.heads import LinearHead
from cleantune.training.models import Model
from cleantune.training.trainer import Trainer

WIDTH = 8
NOISE_SETTINGS: dict[str, dict[str, Any]] = {"nmtune": {"loss": "gce"}, "mlp": {"loss": "gce"}}
"""Settings for wrong labels: with cross-entropy these methods address noise in the pre-training only."""
SPREAD = {"turn": 0.6}
"""TURN assumes features that separate the classes: blobs that overlap less, for it and for CE."""
TABLE = [(name, scope) for name in METHODS for scope in get_args(Scope)]
BACKBONE_RATE = 3e-3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: on small products, two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Vectors:
    """Model inputs that are vectors; augmentation adds a little noise."""

    unreadable: ClassVar[dict[int, str]] = {}
    lengths = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def eval_view(self, indices: Tensor) -> Tensor:
        return self.x[indices]

    def weak_view(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        return self.x[indices] + 0.05 * torch.randn(len(indices), self.x.shape[1], generator=generator)

    strong_view = weak_view

    def take(self, indices: np.ndarray) -> Vectors:
        return Vectors(self.x[indices])

    def describe(self, index: int) -> str:
        return f"vector {index}"


@dataclass
class Problem:
    """Blobs in C classes around random centers, with noise in the labels of train and validation."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    truth: dict[str, Tensor]
    classes: int

    def data(self) -> Data:
        """Return the data of the evaluator."""
        rows = {s: Rows(np.arange(len(y)), y.numpy(), Vectors(self.x[s])) for s, y in self.y.items()}  # type: ignore[arg-type]
        names = tuple(f"c{c}" for c in range(self.classes))
        truth = {s: t.numpy() for s, t in self.truth.items()}
        return Data("features", names, names, rows, truth, (), "")


def blobs(noise: float, seed: int = 0, size: int = 480, classes: int = 4, spread: float = 0.8) -> Problem:
    """Draw blobs with symmetric label noise in train and validation."""
    rng = torch.Generator().manual_seed(seed)
    centers = 2.0 * torch.nn.functional.normalize(torch.randn(classes, WIDTH, generator=rng), dim=1)
    x, y, truth = {}, {}, {}
    for split, count in (("train", size), ("validation", size // 4), ("test", size)):
        true = torch.randperm(count, generator=rng) % classes
        x[split] = centers[true] + spread * torch.randn(count, WIDTH, generator=rng)
        chosen = torch.rand(count, generator=rng) < (0.0 if split == "test" else noise)
        drawn = torch.randint(classes, (count,), generator=rng)
        y[split], truth[split] = torch.where(chosen, drawn, true), true
    return Problem(x, y, truth, classes)


def backbone(seed: int = 0, dropout: float = 0.1) -> Backbone:
    """Return a small random network with dropout and BatchNorm."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 12))
    return open_backbone(module, feature="last layer", width=12).eval()


def new_head(features: Any, k: int) -> LinearHead:
    """Return a head on standardized features: zeros, or random weights for a second model."""
    scale = mean_and_std(features)
    rng = torch.Generator().manual_seed(k)
    return LinearHead(len(scale[0]), CLASSES, init="normal" if k else "zeros", standardize=scale, generator=rng)


CLASSES = 4


def loop_on(
    problem: Problem, scope: Scope, seed: int = 0, body: Backbone | None = None, nets: int = 1, **options: Any
) -> Trainer:
    """Return a run before its first phase: on features in scope head, on samples through a backbone in scope all.

    Args:
        problem: Data of the run.
        scope: Scope of its method.
        seed: Seed of the run.
        body: Backbone; the default is a small random network.
        nets: Number of models.
        **options: Further arguments of the trainer, and `precision` of the models.
    """
    precision = options.pop("precision", None)
    body = (body or backbone()) if scope == "all" else None
    splits = {}
    for split, x in problem.x.items():
        with torch.no_grad():
            features = FeatureBatches(x if body is None else body.eval()(x))
        splits[split] = SplitData(problem.y[split], features, None if body is None else SampleBatches(Vectors(x)))
    features = splits["train"].features.plain
    models = [Model(copy.deepcopy(body), new_head(features, k), precision) for k in range(nets)]
    return options.pop("trainer", Trainer)(models, splits, problem.classes, seed, new_head, **options)


def loop_for(
    method: Method, problem: Problem, scope: Scope, seed: int = 0, body: Backbone | None = None, **options: Any
) -> Trainer:
    """Return a run with as many models as the method trains."""
    return loop_on(problem, scope, seed, body, method.phases()[0].num_nets, **options)


def quick(name: str, scope: Scope, **changes: Any) -> Method:
    """Return a method with learning rates for small problems."""
    probe = Stage(epochs=12, learning_rate=1e-2, batch_size=32)
    tune = Stage(epochs=2 if name == "robust" else 5, learning_rate=1e-2, batch_size=32, warmup=0.1)
    return METHODS[name](**{"scope": scope, "probe": probe, "tune": tune} | changes)


class InMemory:
    """A checkpoint store that keeps every checkpoint."""

    def __init__(self) -> None:
        self.saved: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
        self.rows: list[EpochMetrics] = []

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.saved[-1] if self.saved else None

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        # Contiguous, as a file gives them back.
        copies = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        self.saved.append((copies, copy.deepcopy(dict(counters))))

    def is_checkpoint_due(self) -> bool:
        return True

    def append_metrics(self, row: EpochMetrics) -> None:
        self.rows.append(row)


def trained(
    problem: Problem, method: Method, run: Trainer, memory: InMemory | None = None
) -> tuple[Trainer, list[EpochMetrics]]:
    """Train to the last epoch, and return the run and its metrics."""
    todo = phases(method, BACKBONE_RATE)
    return run, list(train(todo, run, Evaluator(problem.data()), memory))


def bits(run: Trainer) -> dict[str, Tensor]:
    """Return weights, per-sample memory and generator of a run."""
    tensors = {f"{k}.{name}": value for k, net in enumerate(run.models) for name, value in net.state_dict().items()}
    tensors |= {f"ledger.{name}": value for name, value in run.ledger.state_dict().items()}
    tensors |= {f"probe.{name}": value for name, value in run.probe.state_dict()[0].items()}
    tensors |= {f"label_probabilities.{split}": p for split, p in run.label_probabilities.items()}
    return {name: value.clone() for name, value in (tensors | {"rng": run.rng.get_state()}).items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Assert that tensors are bitwise identical."""
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_clean_blobs_are_solved(name: str, scope: Scope) -> None:
    problem = blobs(0.0, spread=0.3)
    method = quick(name, scope)
    _, rows = trained(problem, method, loop_for(method, problem, scope))
    assert rows[-1]["accuracy_test"] > 0.97


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_no_method_is_worse_than_ce_at_forty_percent_noise(name: str, scope: Scope) -> None:
    def accuracy(of: str) -> float:
        found = []
        for seed in range(2):
            problem = blobs(0.53, seed, spread=SPREAD.get(name, 0.8))  # a draw in four hits the true class
            method = quick(of, scope, **(NOISE_SETTINGS.get(of, {}) if scope == "head" else {}))
            found.append(trained(problem, method, loop_for(method, problem, scope, seed))[1][-1]["accuracy_test"])
        return float(np.mean(found))

    assert accuracy(name) >= accuracy("ce") - 0.015


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_same_seed_gives_the_same_bits(name: str, scope: Scope) -> None:
    problem, method = blobs(0.4, size=160), quick(name, scope)
    first, _ = trained(problem, method, loop_for(method, problem, scope))
    torch.rand(7)
    second, _ = trained(problem, method, loop_for(method, problem, scope))
    other, _ = trained(problem, method, loop_for(method, problem, scope, seed=1))
    assert_same(bits(first), bits(second))
    weights = [k for k in bits(first) if k.endswith("linear.weight")]
    assert weights
    assert not any(torch.equal(bits(first)[k], bits(other)[k]) for k in weights)


@pytest.fixture
def _only_new_objects() -> Iterator[None]:
    """Hide existing objects from the garbage collector."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class TensorCounter(Trainer):
    """A trainer that counts the tensors alive in steps 4 and 14 of each pass."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.alive: list[list[int]] = []

    def learn(self, nets: Any, loss: Any, selection: Any = None, **options: Any) -> None:
        """Train with a loss that counts."""
        counts: list[int] = []
        steps = itertools.count()

        def counted(*args: Any) -> Any:
            if next(steps) in (4, 14):
                gc.collect()
                # By type: isinstance asks the object itself, and a proxy whose referent is gone raises.
                counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
            return loss(*args)

        super().learn(nets, counted, selection, **options)
        self.alive.append(counts)


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_no_tensor_outlives_its_step(name: str, scope: Scope) -> None:
    short = Stage(epochs=1, learning_rate=1e-2, batch_size=8)
    problem, method = blobs(0.4, size=320), quick(name, scope, probe=short, tune=short)
    run = loop_for(method, problem, scope, trainer=TensorCounter)
    trained(problem, method, run)
    passes = [counts for counts in run.alive if len(counts) == 2]  # type: ignore[attr-defined]
    assert passes
    assert not [counts for counts in passes if counts[0] != counts[1]]


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_resume_after_any_epoch_is_bitwise(name: str, scope: Scope) -> None:
    problem = blobs(0.4, size=128)
    short = Stage(epochs=3, learning_rate=1e-2, batch_size=32)
    method = quick(name, scope, probe=short, tune=replace(short, epochs=2, warmup=0.1))
    memory = InMemory()
    whole, rows = trained(problem, method, loop_for(method, problem, scope), memory)
    cost = {k: v for k, v in vars(whole.cost).items() if k != "seconds"}
    for done in range(1, len(rows)):
        again = InMemory()
        again.saved = memory.saved[:done]
        torch.rand(done)
        resumed, left = trained(problem, method, loop_for(method, problem, scope), again)
        assert len(left) == len(rows) - done
        assert_same(bits(resumed), bits(whole))
        assert_same(Checkpoint.capture(resumed).tensors, Checkpoint.capture(whole).tensors)
        assert {k: v for k, v in vars(resumed.cost).items() if k != "seconds"} == cost
        for a, b in zip(left, rows[done:], strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_resume_in_channels_last_is_bitwise() -> None:
    problem = blobs(0.4, size=128)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(1))
    body = open_backbone(module, feature="convolution", width=32).eval()

    def fresh() -> Trainer:
        return loop_on(problem, "all", body=body, precision=Precision(channels_last=True))

    method, memory = quick("ce", "all", tune=Stage(epochs=3, learning_rate=1e-2, batch_size=32)), InMemory()
    whole, _ = trained(problem, method, fresh(), memory)
    again = InMemory()
    again.saved = memory.saved[:1]
    resumed, _ = trained(problem, method, fresh(), again)
    assert_same(bits(resumed), bits(whole))


@pytest.mark.parametrize("name", METHODS)
def test_scope_head_does_not_use_the_backbone(name: str) -> None:
    problem, body, method = blobs(0.4, size=160), backbone(), quick(name, "head")
    run = loop_for(method, problem, "all", body=body)
    trained(problem, method, run)
    assert run.models[0].backbone is not None
    assert_same(dict(run.models[0].backbone.state_dict()), dict(body.state_dict()))
    assert (run.cost.forward_passes, run.cost.evaluation_forward_passes, run.backbone_changed) == (0, 0, False)


@pytest.mark.parametrize("name", ["ce", "unicon"])
def test_batches_on_a_cpu_are_not_prefetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefetched, original = [], SampleBatches.batches

    def batches(self: SampleBatches, *args: Any, prefetch: bool = False) -> Any:
        prefetched.append(prefetch)
        return original(self, *args, prefetch=prefetch)

    monkeypatch.setattr(SampleBatches, "batches", batches)
    problem, method = blobs(0.3), quick(name, "all")
    trained(problem, method, loop_for(method, problem, "all", body=backbone(dropout=0.0)))
    assert set(prefetched) == {False}


@pytest.mark.parametrize("name", METHODS)
def test_scope_all_trains_all_but_frozen_statistics(name: str) -> None:
    problem, body, method = blobs(0.4, size=160), backbone(), quick(name, "all")
    run = loop_for(method, problem, "all", body=body)
    trained(problem, method, run)
    before, after = body.state_dict(), run.models[0].backbone.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[k], after[k]) for k in before if "running" in k)
    assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("0.weight"))


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_true_labels_change_no_bit(name: str, scope: Scope) -> None:
    problem, method = blobs(0.4, size=160), quick(name, scope)
    told, _ = trained(problem, method, loop_for(method, problem, scope))
    lies = replace(problem, truth={s: (t + 1) % problem.classes for s, t in problem.truth.items()})
    lied, _ = trained(lies, method, loop_for(method, lies, scope))
    assert_same(bits(told), bits(lied))


def reachable(root: object) -> Iterator[object]:
    """Yield every object that is reachable by references, except code and modules."""
    skipped, seen, todo = (type, type(np), type(reachable)), set(), [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, skipped):
            continue
        seen.add(id(thing))
        yield thing
        todo += gc.get_referents(thing)


@pytest.mark.parametrize(("name", "scope"), TABLE)
def test_true_labels_cannot_be_reached_by_a_method(name: str, scope: Scope) -> None:
    problem = blobs(0.4, size=160)
    truth = [t.tolist() for t in problem.truth.values()]
    method = quick(name, scope)
    run = loop_for(method, problem, scope)
    clean = {s: y.tolist() for s, y in problem.y.items()}
    seen: list[object] = []

    def spying(phase: Phase) -> Phase:
        def epoch(given: Any) -> None:
            phase.epoch(given)
            seen.append([given, given.selection])

        return replace(phase, epoch=epoch)

    todo = tuple(spying(p) for p in phases(method, BACKBONE_RATE))
    list(train(todo, run, Evaluator(problem.data())))
    assert clean["train"] != truth[0]
    for thing in reachable(seen[-1]):
        if isinstance(thing, Tensor | np.ndarray) and thing.ndim == 1 and len(thing) == 160:
            assert thing.tolist() != truth[0]


def test_at_sixty_percent_noise_robust_methods_beat_ce() -> None:

    def last(name: str, scope: Scope) -> tuple[float, EpochMetrics]:
        found = []
        for seed in range(2):
            problem = blobs(0.6, seed, size=960, spread=0.35)
            row = trained(problem, quick(name, scope), loop_on(problem, scope, seed))[1][-1]
            found.append(row["accuracy_test"])
        return float(np.mean(found)), row

    ce, gce, robust = last("ce", "head")[0], last("gce", "head")[0], last("robust", "head")
    assert gce >= ce - 0.01
    assert robust[0] >= gce - 0.01
    assert robust[1]["purity"] > 0.95

    problem = blobs(0.6, size=960, spread=0.35)
    rows = trained(problem, quick("robust", "all"), loop_on(problem, "all"))[1]
    probe = trained(problem, quick("gce", "head"), loop_on(problem, "all"))[1][-1]
    assert rows[-1]["accuracy_test"] >= probe["accuracy_test"] - 0.01
    assert [r["purity"] for r in rows if r["phase"] == "tune"][-1] > 0.95


def test_every_preset_has_phases_of_known_names() -> None:
    for name, method in METHODS.items():
        for preset, make in method.presets.items():
            names = [p.name for p in make("vit").phases()]
            assert set(names) <= {"probe", "tune"}, f"{name} {preset}: {names}"
    assert [p.name for p in Robust().phases()] == ["probe", "tune", "tune", "probe"]
