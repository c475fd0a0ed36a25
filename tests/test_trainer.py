"""Tests of the trainer: selected samples, cost, schedule and phases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_contract import CLASSES, Problem, _one_thread, backbone, blobs, loop_on, quick  # noqa: F401 - a fixture
from torch import Tensor

from cleantune.errors import UserError
from cleantune.functional import losses
from cleantune.methods import METHODS
from cleantune.methods.protocol import Batch, EpochMetrics, Phase, Scope, Selection, Stage
from cleantune.training.epochs import phases, train
from cleantune.training.sampling import split_batches
from cleantune.training.trainer import Trainer

STAGE = Stage(epochs=1, learning_rate=1e-2, backbone_learning_rate=1e-3, batch_size=32)
N = 96


def entered(scope: Scope, problem: Problem | None = None, stage: Stage = STAGE, name: str = "tune") -> Trainer:
    """Return a run in the first epoch of a phase."""
    run = loop_on(problem or blobs(0.4, size=N), scope)
    run.begin_phase(Phase(name, scope, stage, lambda run: None))
    return run


def plain_loss(net: Callable[..., Any], batch: Batch) -> Tensor:
    return losses.weighted_mean(losses.cross_entropy(net(batch.views[0]).logits, batch.y), batch.weight)


def ce(y: Tensor, logits: Tensor) -> Tensor:
    return losses.cross_entropy(logits, y)


def quiet(run: Trainer) -> dict[str, Any]:
    return {}


class Spy:
    """A loss that records its batches."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def __call__(self, net: Callable[..., Any], batch: Batch) -> Tensor:
        self.batches.append(batch.indices.clone())
        return plain_loss(net, batch)

    @property
    def visited(self) -> list[int]:
        return torch.cat(self.batches).tolist()


def rows_of(method: Any, run: Trainer) -> list[EpochMetrics]:
    return list(train(phases(method, 1e-3), run, quiet))


def test_score_before_training_uses_cached_features_at_no_cost() -> None:
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    run.models[0].head.linear.weight.data.normal_()  # type: ignore[union-attr, operator]
    found = run.score(ce, run.net)
    assert run.cost.forward_passes == 0
    net = run.models[0].eval()
    with torch.no_grad():
        fresh = ce(problem.y["train"], net(problem.x["train"]).logits)
    torch.testing.assert_close(found, fresh, atol=1e-4, rtol=0)


def test_score_after_training_costs_a_forward_pass_per_sample() -> None:
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    found = run.score(ce, run.net)
    assert run.cost.forward_passes - before == N
    net = run.models[0].eval()
    with torch.no_grad():
        fresh = ce(problem.y["train"], net(problem.x["train"]).logits)
    torch.testing.assert_close(found, fresh, atol=1e-4, rtol=0)


def test_score_changes_neither_weights_nor_generator() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    rng, weights = run.rng.get_state(), {k: v.clone() for k, v in run.models[0].state_dict().items()}
    assert not run.score(ce, run.net).requires_grad
    assert torch.equal(rng, run.rng.get_state())
    assert all(torch.equal(v, weights[k]) for k, v in run.models[0].state_dict().items())


def test_epoch_of_fine_tuning_costs_three_passes_per_sample() -> None:
    run = loop_on(blobs(0.4, size=N), "all")
    rows = rows_of(quick("ce", "all"), run)
    assert [row["forward_passes"] for row in rows] == [3 * N * (k + 1) for k in range(len(rows))]
    assert run.cost.training_samples == N * len(rows)
    assert run.cost.optimizer_steps == math.ceil(N / 32) * len(rows)


def test_probe_on_cached_features_costs_no_forward_pass() -> None:
    run = loop_on(blobs(0.4, size=N), "all")
    rows_of(quick("gce", "head"), run)
    assert run.cost.forward_passes == 0


def test_paper_turn_costs_one_pass_and_three_per_selected_sample() -> None:
    problem = blobs(0.4, size=N)
    paper = METHODS["turn"].presets["paper"]("vit")
    method = replace(paper, probe=quick("turn", "all").probe, tune=replace(STAGE, epochs=3))  # type: ignore[type-var, attr-defined]
    rows = [row for row in rows_of(method, loop_on(problem, "all")) if row["phase"] == "tune"]
    assert len(rows) == 3
    assert rows[0]["forward_passes"] == 3 * rows[0]["selected"]
    for before, row in itertools.pairwise(rows):
        assert row["forward_passes"] - before["forward_passes"] == N + 3 * row["selected"]


def test_evaluation_passes_are_counted_separately() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    run.probabilities("validation")
    assert run.cost.forward_passes == before
    assert run.cost.evaluation_forward_passes == N // 4


def test_probabilities_are_cached_until_weights_change() -> None:
    run = entered("all")

    def evaluate() -> tuple[Tensor, int]:
        before = run.cost.evaluation_forward_passes
        return run.probabilities("validation"), (run.cost.evaluation_forward_passes - before) // (N // 4)

    run.learn(run.net, plain_loss)
    (first, cost), (again, free) = evaluate(), evaluate()
    assert (cost, free) == (1, 0)
    assert torch.equal(first, again)
    run.learn(run.net, plain_loss)
    learned, cost = evaluate()
    assert cost == 1
    assert not torch.equal(learned, first)
    run.predictor.weights_changed(backbone=True)
    assert evaluate()[1] == 1


@pytest.mark.parametrize(("passes", "visits"), [(1.0, N), (0.25, 24), (2.0, 2 * N), (2.5, 2 * N + 48), (0.001, 1)])
def test_fraction_of_a_pass_visits_that_fraction_of_samples(passes: float, visits: int) -> None:
    run, spy = entered("head"), Spy()
    run.learn(run.net, spy, passes=passes)
    assert len(spy.visited) == visits == run.cost.training_samples
    whole = [spy.visited[start : start + N] for start in range(0, visits - visits % N, N)]
    assert all(sorted(one) == list(range(N)) for one in whole)
    unlabeled = spy.visited[len(whole) * N :]
    assert len(set(unlabeled)) == len(unlabeled)


def test_two_passes_have_two_orders() -> None:
    run, spy = entered("head"), Spy()
    run.learn(run.net, spy, passes=2)
    assert spy.visited[:N] != spy.visited[N:]


def test_learn_visits_only_selected_samples() -> None:
    run, spy = entered("head"), Spy()
    keep = torch.arange(N) % 3 == 0
    run.learn(run.net, spy, Selection.of(keep))
    assert sorted(spy.visited) == keep.nonzero().flatten().tolist()


def test_weighted_draw_visits_no_sample_of_weight_zero() -> None:
    run, spy = entered("head"), Spy()
    keep, draw = torch.arange(N) < 50, (torch.arange(N) < 10).float()
    run.learn(run.net, spy, Selection(keep, keep.float(), sampling_weights=draw))
    assert len(spy.visited) == 50
    assert set(spy.visited) <= set(range(10))


def test_unlabeled_samples_come_in_equal_number_without_weight() -> None:
    run, keep = entered("head"), torch.arange(N) < 70
    visited: list[int] = []

    def loss(net: Any, batch: Batch) -> Tensor:
        assert batch.unlabeled is not None
        assert len(batch.unlabeled.indices) == len(batch.indices)
        assert not batch.unlabeled.weight.any()
        visited.extend(batch.unlabeled.indices.tolist())
        return plain_loss(net, batch)

    run.learn(run.net, loss, Selection(keep, keep.float(), unlabeled=~keep))
    assert len(visited) == 70
    assert set(visited) == set(range(70, N))


def test_small_last_batch_is_merged_into_the_one_before() -> None:
    for left, sizes in ((3, [32, 32, 35]), (4, [32, 32, 32, 4]), (0, [32, 32, 32])):
        run, spy = entered("head", blobs(0.0, size=96 + left)), Spy()
        run.learn(run.net, spy)
        assert [len(b) for b in spy.batches] == sizes


def test_last_batch_of_one_is_merged() -> None:
    assert [len(b) for b in split_batches(torch.arange(65), 32)] == [32, 33]
    assert [len(b) for b in split_batches(torch.arange(66), 32)] == [32, 32, 2]
    assert [len(b) for b in split_batches(torch.arange(1), 32)] == [1]
    assert torch.cat(split_batches(torch.arange(65), 32)).tolist() == list(range(65))
    run, spy = entered("head", blobs(0.0, size=97)), Spy()
    run.learn(run.net, spy)
    assert [len(b) for b in spy.batches] == [32, 32, 33]


def test_empty_selection_raises_error_that_names_the_key() -> None:
    run = entered("head")
    with pytest.raises(UserError, match=r"phase tune, epoch 0: none of 96 samples is selected; lower method\.tau"):
        run.learn(run.net, plain_loss, Selection.of(torch.zeros(N, dtype=torch.bool)))


@pytest.mark.parametrize("scope", ["head", "all"])
def test_infinite_loss_raises_error_that_names_the_keys(scope: Scope) -> None:
    run = entered(scope)
    words = r"loss is not finite; lower method\.tune\.learning_rate \(0\.01\)"
    words += r" or backbone_learning_rate \(0\.001\)" if scope == "all" else "$"
    with pytest.raises(UserError, match=words):
        run.learn(run.net, lambda net, batch: plain_loss(net, batch) * float("nan"))


def test_scope_all_without_backbone_is_refused() -> None:
    run = loop_on(blobs(0.0, size=N), "head")
    with pytest.raises(UserError, match="only --scope head"):
        run.begin_phase(Phase("tune", "all", STAGE, lambda run: None))


def rates(run: Trainer, phase: Phase, passes: float = 1.0) -> list[float]:
    """Return the learning rate of the head at each step of a phase."""
    out: list[float] = []
    run.begin_phase(phase)

    def loss(net: Any, batch: Batch) -> Tensor:
        # The rate is set between the loss and the step: read after the step, from the step before.
        value = plain_loss(net, batch)
        value.register_hook(lambda g: out.append(run.state.phase_heads[phase.name][0][1].param_groups[0]["lr"]))
        return value

    for epoch in range(phase.stage.epochs):
        run.begin_epoch(epoch)
        run.learn(run.net, loss, passes=passes)
    return out


def test_phases_with_spans_share_one_schedule() -> None:
    stage = replace(STAGE, batch_size=8, warmup=0.25)
    whole = rates(loop_on(blobs(0.0, size=N), "head"), Phase("a", "head", stage, lambda run: None))
    run = loop_on(blobs(0.0, size=N), "head")
    halves = []
    for head, span in (("new", (0.0, 0.5)), ("resume", (0.5, 1.0))):
        halves += rates(run, Phase("a", "head", stage, lambda run: None, head, span), passes=0.5)  # type: ignore[arg-type]
    assert halves == pytest.approx(whole)
    two = rates(loop_on(blobs(0.0, size=N), "head"), Phase("a", "head", replace(stage, epochs=2), lambda run: None))
    assert two[::2] == pytest.approx(whole)


def test_parameter_groups_keep_their_ratio_of_learning_rates() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    groups = run.state.phase_heads["tune"][0][1].param_groups
    assert groups[0]["lr"] / groups[1]["lr"] == pytest.approx(STAGE.learning_rate / 1e-3)


def test_own_head_continues_with_its_optimizer() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    head, optimizer = run.state.phase_heads["tune"][0]
    steps = float(optimizer.state_dict()["state"][0]["step"])
    assert steps == 3
    run.begin_phase(Phase("probe", "head", STAGE, lambda run: None))
    assert run.models[0].head is not head
    run.learn(run.net, plain_loss)
    run.begin_phase(Phase("tune", "all", STAGE, lambda run: None, "resume"))
    assert run.models[0].head is head
    assert run.state.phase_heads["tune"][0][1] is optimizer
    run.learn(run.net, plain_loss)
    assert float(optimizer.state_dict()["state"][0]["step"]) == 2 * steps


def test_same_head_continues_with_a_new_optimizer() -> None:
    run = entered("head", name="probe")
    run.learn(run.net, plain_loss)
    head = run.models[0].head
    run.begin_phase(Phase("tune", "head", STAGE, lambda run: None, "same"))
    assert run.models[0].head is head
    assert run.state.phase_heads["tune"][0][1].state_dict()["state"] == {}


def test_probe_after_tuning_uses_current_features() -> None:
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    old = run.splits["train"].features.features.clone()  # type: ignore[attr-defined]
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    run.begin_phase(Phase("probe", "head", STAGE, lambda run: None))
    new = run.splits["train"].features.features  # type: ignore[attr-defined]
    assert run.cost.forward_passes - before == N
    assert not torch.equal(old, new)
    with torch.no_grad():
        torch.testing.assert_close(new, run.models[0].eval().features(problem.x["train"]), atol=1e-5, rtol=0)
    run.begin_phase(Phase("probe", "head", STAGE, lambda run: None))
    assert run.cost.forward_passes - before == N, "unchanged features are not made twice"


def test_samples_of_weight_zero_change_nothing() -> None:
    run = entered("head", stage=replace(STAGE, weight_decay=0.0))
    before = run.models[0].head.linear.weight.clone()  # type: ignore[union-attr, operator]
    everything = torch.ones(N, dtype=torch.bool)
    run.learn(run.net, plain_loss, Selection(everything, torch.zeros(N)))
    assert torch.equal(before, run.models[0].head.linear.weight)  # type: ignore[union-attr]


def test_probabilities_sum_to_one() -> None:
    run = entered("head")
    run.learn(run.net, plain_loss)
    p = run.probabilities("test")
    assert p.shape == (N, CLASSES)
    torch.testing.assert_close(p.sum(1), torch.ones(N))


def test_dropout_is_active_in_training_only() -> None:
    body = backbone(dropout=0.5)
    run = loop_on(blobs(0.4, size=N), "all", body=body)
    run.begin_phase(Phase("tune", "all", STAGE, lambda run: None))
    run.learn(run.net, plain_loss)
    assert run.models[0].training
    assert torch.equal(run.score(ce, run.net), run.score(ce, run.net))


def test_training_leaves_the_global_generator_untouched() -> None:
    run = loop_on(blobs(0.4, size=N), "all", body=backbone(dropout=0.5))
    run.begin_phase(Phase("tune", "all", STAGE, lambda run: None))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run.learn(run.net, plain_loss)
    assert torch.equal(before, torch.get_rng_state())


def test_sample_weight_multiplies_the_selection() -> None:
    weight = (torch.arange(N) % 2).float()
    run = loop_on(blobs(0.4, size=N), "head", sample_weight=weight)
    run.begin_phase(Phase("probe", "head", STAGE, lambda run: None))

    def loss(net: Any, batch: Batch) -> Tensor:
        assert torch.equal(batch.weight, weight[batch.indices])
        return plain_loss(net, batch)

    run.learn(run.net, loss)
    assert run.selection is not None
    assert torch.equal(run.selection.weight, weight)


def test_probe_statistics_average_losses_over_epochs() -> None:
    problem = blobs(0.4, size=N)
    run = loop_on(problem, "head")
    method = quick("ce", "head")
    losses_by_epoch, probabilities = [], []
    for _ in train(phases(method, 0.0), run, quiet):
        p = run.probabilities("train")
        probabilities.append(p)
        losses_by_epoch.append(-p.gather(1, problem.y["train"][:, None])[:, 0].log())
    late = len(losses_by_epoch) // 2
    found = run.probe_statistics
    assert found is not None
    torch.testing.assert_close(found.loss, torch.stack(losses_by_epoch).mean(0))
    torch.testing.assert_close(found.late_loss, torch.stack(losses_by_epoch[late:]).mean(0))
    torch.testing.assert_close(found.late_probabilities, torch.stack(probabilities[late:]).mean(0))


def test_probe_statistics_exclude_phases_that_train_a_selection() -> None:
    run = entered("head")
    run.learn(run.net, plain_loss, Selection.of(torch.arange(N) < 50))
    run.record_probe()
    assert run.probe_statistics is None
