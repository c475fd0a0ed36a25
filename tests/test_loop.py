"""What score and learn do: which samples, at which cost, at which rate."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
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
from cleantune.training import checkpoint, trainer
from cleantune.training.checkpoint import split_batches
from cleantune.training.epochs import phases, train
from cleantune.training.optim import lr_factor
from cleantune.training.trainer import Trainer

STAGE = Stage(epochs=1, learning_rate=1e-2, backbone_learning_rate=1e-3, batch_size=32)
N = 96


def entered(scope: Scope, problem: Problem | None = None, stage: Stage = STAGE, name: str = "tune") -> Trainer:
    """A run in the first epoch of a phase."""
    run = loop_on(problem or blobs(0.4, size=N), scope)
    run.enter(Phase(name, scope, stage, lambda run: None))
    return run


def plain_loss(net: Callable[..., Any], batch: Batch) -> Tensor:
    return losses.weighted_mean(losses.cross_entropy(net(batch.views[0]).logits, batch.y), batch.weight)


def ce(y: Tensor, logits: Tensor) -> Tensor:
    return losses.cross_entropy(logits, y)


def quiet(run: Trainer, looks: dict[str, Tensor]) -> dict[str, Any]:
    return {}


class Spy:
    """A loss that writes down the batches that it saw."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def __call__(self, net: Callable[..., Any], batch: Batch) -> Tensor:
        self.batches.append(batch.indices.clone())
        return plain_loss(net, batch)

    @property
    def seen(self) -> list[int]:
        return torch.cat(self.batches).tolist()


def rows_of(method: Any, run: Trainer) -> list[EpochMetrics]:
    return list(train(phases(method, 1e-3), run, quiet))


def test_a_score_before_any_step_is_a_fresh_forward_and_costs_none() -> None:
    """Acceptance check 8 of the spec: first-epoch losses from cached features."""
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    run.whole[0].head.linear.weight.data.normal_()  # type: ignore[union-attr, operator]
    found = run.score(ce, run.net)
    assert run.cost.forward_passes == 0
    net = run.whole[0].eval()
    with torch.no_grad():
        fresh = ce(problem.y["train"], net(problem.x["train"]).logits)
    torch.testing.assert_close(found, fresh, atol=1e-4, rtol=0)


def test_a_score_after_a_step_is_a_fresh_forward_and_costs_one_a_sample() -> None:
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    found = run.score(ce, run.net)
    assert run.cost.forward_passes - before == N
    net = run.whole[0].eval()
    with torch.no_grad():
        fresh = ce(problem.y["train"], net(problem.x["train"]).logits)
    torch.testing.assert_close(found, fresh, atol=1e-4, rtol=0)


def test_a_score_takes_no_gradient_moves_no_generator_and_no_weight() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    rng, weights = run.rng.get_state(), {k: v.clone() for k, v in run.whole[0].state_dict().items()}
    assert not run.score(ce, run.net).requires_grad
    assert torch.equal(rng, run.rng.get_state())
    assert all(torch.equal(v, weights[k]) for k, v in run.whole[0].state_dict().items())


def test_an_epoch_of_full_fine_tuning_costs_three_forwards_a_sample() -> None:
    run = loop_on(blobs(0.4, size=N), "all")
    rows = rows_of(quick("ce", "all"), run)
    assert [row["forward_passes"] for row in rows] == [3 * N * (k + 1) for k in range(len(rows))]
    assert run.cost.training_samples == N * len(rows)
    assert run.cost.optimizer_steps == math.ceil(N / 32) * len(rows)


def test_probing_on_cached_features_costs_no_forward() -> None:
    run = loop_on(blobs(0.4, size=N), "all")
    rows_of(quick("gce", "head"), run)
    assert run.cost.forward_passes == 0


def test_the_papers_turn_costs_one_look_and_three_a_kept_sample_but_looks_for_free_at_first() -> None:
    problem = blobs(0.4, size=N)
    paper = METHODS["turn"].presets["paper"]("vit")
    method = replace(paper, probe=quick("turn", "all").probe, tune=replace(STAGE, epochs=3))  # type: ignore[type-var, attr-defined]
    rows = [row for row in rows_of(method, loop_on(problem, "all")) if row["phase"] == "tune"]
    assert len(rows) == 3
    assert rows[0]["forward_passes"] == 3 * rows[0]["selected"]
    for before, row in itertools.pairwise(rows):
        assert row["forward_passes"] - before["forward_passes"] == N + 3 * row["selected"]


def test_looks_for_evaluation_are_booked_apart() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    run.probabilities("validation")
    assert run.cost.forward_passes == before
    assert run.cost.evaluation_forward_passes == N // 4


def test_a_held_out_split_is_looked_at_again_only_after_the_nets_have_moved() -> None:
    run = entered("all")

    def look() -> tuple[torch.Tensor, int]:
        before = run.cost.evaluation_forward_passes
        return run.probabilities("validation"), (run.cost.evaluation_forward_passes - before) // (N // 4)

    run.learn(run.net, plain_loss)
    (first, cost), (again, free) = look(), look()
    assert (cost, free) == (1, 0)
    assert torch.equal(first, again)
    run.learn(run.net, plain_loss)
    learned, cost = look()
    assert cost == 1
    assert not torch.equal(learned, first)
    with torch.no_grad():
        next(run.whole[0].parameters()).add_(1.0)  # by hand
    by_hand, cost = look()
    assert cost == 1
    assert not torch.equal(by_hand, learned)


@pytest.mark.parametrize(("passes", "visits"), [(1.0, N), (0.25, 24), (2.0, 2 * N), (2.5, 2 * N + 48), (0.001, 1)])
def test_a_fraction_of_a_pass_visits_that_share_of_the_samples(passes: float, visits: int) -> None:
    run, spy = entered("head"), Spy()
    run.learn(run.net, spy, passes=passes)
    assert len(spy.seen) == visits == run.cost.training_samples
    whole = [spy.seen[start : start + N] for start in range(0, visits - visits % N, N)]
    assert all(sorted(one) == list(range(N)) for one in whole)
    unlabeled = spy.seen[len(whole) * N :]
    assert len(set(unlabeled)) == len(unlabeled)


def test_two_passes_have_two_orders() -> None:
    run, spy = entered("head"), Spy()
    run.learn(run.net, spy, passes=2)
    assert spy.seen[:N] != spy.seen[N:]


def test_only_what_the_plan_keeps_is_seen() -> None:
    run, spy = entered("head"), Spy()
    keep = torch.arange(N) % 3 == 0
    run.learn(run.net, spy, Selection.of(keep))
    assert sorted(spy.seen) == keep.nonzero().flatten().tolist()


def test_a_drawn_plan_sees_as_many_as_it_keeps_and_none_of_no_weight() -> None:
    run, spy = entered("head"), Spy()
    keep, draw = torch.arange(N) < 50, (torch.arange(N) < 10).float()
    run.learn(run.net, spy, Selection(keep, keep.float(), sampling_weights=draw))
    assert len(spy.seen) == 50
    assert set(spy.seen) <= set(range(10))


def test_the_rest_comes_beside_in_equal_number_and_without_weight() -> None:
    run, keep = entered("head"), torch.arange(N) < 70
    met: list[int] = []

    def loss(net: Any, batch: Batch) -> Tensor:
        assert batch.unlabeled is not None
        assert len(batch.unlabeled.indices) == len(batch.indices)
        assert not batch.unlabeled.weight.any()
        met.extend(batch.unlabeled.indices.tolist())
        return plain_loss(net, batch)

    run.learn(run.net, loss, Selection(keep, keep.float(), unlabeled=~keep))
    assert len(met) == 70
    assert set(met) == set(range(70, N))


def test_what_is_left_of_a_pass_makes_no_step_of_its_own_below_an_eighth_of_a_batch() -> None:
    for left, sizes in ((3, [32, 32, 35]), (4, [32, 32, 32, 4]), (0, [32, 32, 32])):
        run, spy = entered("head", blobs(0.0, size=96 + left)), Spy()
        run.learn(run.net, spy)
        assert [len(b) for b in spy.batches] == sizes


def test_a_last_batch_of_one_joins_the_batch_before_it() -> None:
    assert [len(b) for b in split_batches(torch.arange(65), 32)] == [32, 33]
    assert [len(b) for b in split_batches(torch.arange(66), 32)] == [32, 32, 2]
    assert [len(b) for b in split_batches(torch.arange(1), 32)] == [1]
    assert torch.cat(split_batches(torch.arange(65), 32)).tolist() == list(range(65))
    run, spy = entered("head", blobs(0.0, size=97)), Spy()
    run.learn(run.net, spy)
    assert [len(b) for b in spy.batches] == [32, 32, 33]


def test_a_plan_that_keeps_nothing_is_a_sentence_with_the_key() -> None:
    run = entered("head")
    with pytest.raises(UserError, match=r"phase tune, epoch 0: the plan keeps none of 96 samples; lower method\.tau"):
        run.learn(run.net, plain_loss, Selection.of(torch.zeros(N, dtype=torch.bool)))


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_loss_that_is_not_finite_is_a_sentence_with_the_keys(scope: Scope) -> None:
    run = entered(scope)
    words = r"loss is not finite; lower method\.tune\.learning_rate \(0\.01\)"
    words += r" or backbone_learning_rate \(0\.001\)" if scope == "all" else "$"
    with pytest.raises(UserError, match=words):
        run.learn(run.net, lambda net, batch: plain_loss(net, batch) * float("nan"))


def test_features_without_a_backbone_refuse_scope_all() -> None:
    run = loop_on(blobs(0.0, size=N), "head")
    with pytest.raises(UserError, match="only --scope head"):
        run.enter(Phase("tune", "all", STAGE, lambda run: None))


def test_the_schedule_begins_ends_and_bends_where_it_should() -> None:
    cosine, constant = replace(STAGE, warmup=0.2), replace(STAGE, schedule="constant", warmup=0.2)
    assert 0 < lr_factor(cosine, 0.0) <= 1e-3
    assert lr_factor(cosine, 0.1) == pytest.approx(0.5)
    assert lr_factor(cosine, 0.2) == pytest.approx(1.0)
    assert lr_factor(cosine, 0.6) == pytest.approx(0.5)
    assert lr_factor(cosine, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert lr_factor(constant, 0.1) == pytest.approx(0.5)
    assert lr_factor(constant, 1.0) == lr_factor(constant, 0.3) == 1.0
    assert lr_factor(STAGE, 0.0) == 1.0
    falling = [lr_factor(cosine, 0.2 + 0.8 * k / 50) for k in range(51)]
    assert falling == sorted(falling, reverse=True)


def rates(run: Trainer, phase: Phase, passes: float = 1.0) -> list[float]:
    """The head's rate at each step of a phase."""
    out: list[float] = []
    run.enter(phase)

    def loss(net: Any, batch: Batch) -> Tensor:
        # The rate is set between the loss and the step: read after the step, from the step before.
        value = plain_loss(net, batch)
        value.register_hook(lambda g: out.append(run.left[phase.name][0][1].param_groups[0]["lr"]))
        return value

    for epoch in range(phase.stage.epochs):
        run.epoch = epoch
        run.learn(run.net, loss, passes=passes)
    return out


def test_phases_that_share_a_schedule_run_through_one_cosine() -> None:
    stage = replace(STAGE, batch_size=8, warmup=0.25)
    whole = rates(loop_on(blobs(0.0, size=N), "head"), Phase("a", "head", stage, lambda run: None))
    run = loop_on(blobs(0.0, size=N), "head")
    halves = []
    for head, span in (("new", (0.0, 0.5)), ("resume", (0.5, 1.0))):
        halves += rates(run, Phase("a", "head", stage, lambda run: None, head, span), passes=0.5)  # type: ignore[arg-type]
    assert halves == pytest.approx(whole)
    two = rates(loop_on(blobs(0.0, size=N), "head"), Phase("a", "head", replace(stage, epochs=2), lambda run: None))
    assert two[::2] == pytest.approx(whole)


def test_each_group_keeps_its_own_rate() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    groups = run.left["tune"][0][1].param_groups
    assert groups[0]["lr"] / groups[1]["lr"] == pytest.approx(STAGE.learning_rate / 1e-3)


def test_own_head_goes_on_with_the_head_and_the_optimizer_that_the_phase_left() -> None:
    run = entered("all")
    run.learn(run.net, plain_loss)
    head, optimizer = run.left["tune"][0]
    steps = float(optimizer.state_dict()["state"][0]["step"])
    assert steps == 3
    run.enter(Phase("probe", "head", STAGE, lambda run: None))
    assert run.whole[0].head is not head
    run.learn(run.net, plain_loss)
    run.enter(Phase("tune", "all", STAGE, lambda run: None, "resume"))
    assert run.whole[0].head is head
    assert run.left["tune"][0][1] is optimizer
    run.learn(run.net, plain_loss)
    assert float(optimizer.state_dict()["state"][0]["step"]) == 2 * steps


def test_the_same_head_goes_on_with_a_fresh_optimizer() -> None:
    run = entered("head", name="probe")
    run.learn(run.net, plain_loss)
    head = run.whole[0].head
    run.enter(Phase("tune", "head", STAGE, lambda run: None, "same"))
    assert run.whole[0].head is head
    assert run.left["tune"][0][1].state_dict()["state"] == {}


def test_a_probe_after_tuning_sees_the_features_of_the_moment() -> None:
    problem = blobs(0.4, size=N)
    run = entered("all", problem)
    old = run.splits["train"].features.features.clone()  # type: ignore[attr-defined]
    run.learn(run.net, plain_loss)
    before = run.cost.forward_passes
    run.enter(Phase("probe", "head", STAGE, lambda run: None))
    new = run.splits["train"].features.features  # type: ignore[attr-defined]
    assert run.cost.forward_passes - before == N
    assert not torch.equal(old, new)
    with torch.no_grad():
        torch.testing.assert_close(new, run.whole[0].eval().features(problem.x["train"]), atol=1e-5, rtol=0)
    run.enter(Phase("probe", "head", STAGE, lambda run: None))
    assert run.cost.forward_passes - before == N, "unchanged features are not made twice"


def test_a_weight_of_zero_moves_nothing() -> None:
    run = entered("head", stage=replace(STAGE, weight_decay=0.0))
    before = run.whole[0].head.linear.weight.clone()  # type: ignore[union-attr, operator]
    everything = torch.ones(N, dtype=torch.bool)
    run.learn(run.net, plain_loss, Selection(everything, torch.zeros(N)))
    assert torch.equal(before, run.whole[0].head.linear.weight)  # type: ignore[union-attr]


def test_probabilities_are_the_mean_over_nets_and_sum_to_one() -> None:
    run = entered("head")
    run.learn(run.net, plain_loss)
    p = run.probabilities("test")
    assert p.shape == (N, CLASSES)
    torch.testing.assert_close(p.sum(1), torch.ones(N))


def test_luck_is_seeded_as_torch_seeds_it() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    trainer._seed(7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_dropout_in_the_backbone_is_off_when_looking_and_on_when_learning() -> None:
    body = backbone(dropout=0.5)
    run = loop_on(blobs(0.4, size=N), "all", body=body)
    run.enter(Phase("tune", "all", STAGE, lambda run: None))
    run.learn(run.net, plain_loss)
    assert run.whole[0].training
    assert torch.equal(run.score(ce, run.net), run.score(ce, run.net))


def test_what_a_look_finds_of_a_batch_is_let_go_once_it_stands_in_its_row() -> None:
    sizes, seen = [3, 2, 4, 1], []

    def found() -> Iterator[Tensor]:
        for k, size in enumerate(sizes):
            assert all(rows() is None for rows in seen[: max(k - 1, 0)])
            rows = torch.full((size, 2), float(k))
            seen.append(weakref.ref(rows))
            yield rows
            del rows

    expected = torch.repeat_interleave(torch.arange(4.0), torch.tensor(sizes))[:, None].expand(-1, 2)
    assert torch.equal(checkpoint._joined(found(), sum(sizes)), expected)
