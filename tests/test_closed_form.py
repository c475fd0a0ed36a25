from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cleantune.functional import losses
from cleantune.functional.standardize import mean_and_std
from cleantune.kernels.to_delete.closed_form import mean_elr, mean_gce
from cleantune.methods import METHODS
from cleantune.methods.protocol import Batch, LossOutput, Output
from cleantune.training import batches
from cleantune.training.batches import FeatureBatches
from cleantune.training.checkpoint import SplitData
from cleantune.training.epochs import phases
from cleantune.training.models import LinearHead, Net
from cleantune.training.trainer import Trainer


def head_and_batch(seed: int, scale: float = 1.0, count: int = 24, classes: int = 5) -> tuple[LinearHead, Batch]:
    g = torch.Generator().manual_seed(seed)
    spread = (torch.randn(6, generator=g), 0.5 + torch.rand(6, generator=g))
    head = LinearHead(6, classes, standardize=spread, generator=g)
    with torch.no_grad():
        head.linear.weight.mul_(50 * scale)
        head.linear.bias.normal_(generator=g)
    y, weight = torch.randint(classes, (count,), generator=g), torch.rand(count, generator=g).round(decimals=1)
    return head, Batch(torch.arange(count), y, weight, (torch.randn(count, 6, generator=g),))


def by_autograd(head: LinearHead, batch: Batch, q: float) -> torch.Tensor:
    return losses.mean(losses.gce(head(batch.views[0]).logits, batch.y, q), batch.weight)


@given(q=st.one_of(st.just(0.0), st.floats(0.01, 1.0)), scale=st.floats(0.01, 20.0), seed=st.integers(0, 500))
def test_value_and_gradients_are_those_of_autograd(q: float, scale: float, seed: int) -> None:
    head, batch = head_and_batch(seed, scale)
    value = by_autograd(head, batch, q)
    expected = torch.autograd.grad(value, [head.linear.weight, head.linear.bias])
    made = mean_gce(head, batch, q)
    assert isinstance(made, LossOutput)
    torch.testing.assert_close(made.total, value.detach(), rtol=1e-5, atol=1e-6)
    assert [p for p, _ in made.gradients] == [head.linear.weight, head.linear.bias]
    for (_, ours), theirs in zip(made.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def elr_by_autograd(head: LinearHead, batch: Batch, t: torch.Tensor, strength: float, clamp: float) -> torch.Tensor:
    logits = head(batch.views[0]).logits
    p = logits.softmax(1).clamp(clamp, 1 - clamp)
    each = losses.cross_entropy(logits, batch.y) + strength * losses.elr_regularizer(p, t)
    return losses.mean(each, batch.weight)


@given(
    strength=st.floats(0.0, 10.0), clamp=st.sampled_from([0.0, 1e-4]), scale=st.floats(0.01, 3.0),
    mass=st.floats(0.0, 1.0), seed=st.integers(0, 500),
)  # fmt: skip
def test_elrs_value_and_gradients_are_those_of_autograd(
    strength: float, clamp: float, scale: float, mass: float, seed: int
) -> None:
    head, batch = head_and_batch(seed, scale)
    t = mass * (4 * torch.randn(24, 5, generator=torch.Generator().manual_seed(seed))).softmax(1)
    value = elr_by_autograd(head, batch, t, strength, clamp)
    expected = torch.autograd.grad(value, [head.linear.weight, head.linear.bias])
    seen = []

    def target(rows: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        seen.append((rows, p))
        return t

    made = mean_elr(head, batch, target, strength, clamp)
    torch.testing.assert_close(made.total, value.detach(), rtol=1e-4, atol=1e-5)
    assert [p for p, _ in made.gradients] == [head.linear.weight, head.linear.bias]
    for (_, ours), theirs in zip(made.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)
    [(rows, p)] = seen
    assert torch.equal(rows, batch.rows)
    torch.testing.assert_close(p, head(batch.views[0]).logits.softmax(1).clamp(clamp, 1 - clamp).detach())


def test_a_prediction_that_agrees_all_but_wholly_is_pulled_no_further() -> None:
    head, batch = head_and_batch(0)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([16.5, 0, 0, 0, 0]))
    t = torch.eye(5)[torch.zeros(24, dtype=torch.long)]
    value = elr_by_autograd(head, batch, t, 7.0, 0.0)
    expected = torch.autograd.grad(value, [head.linear.weight, head.linear.bias])
    made = mean_elr(head, batch, lambda rows, p: t, 7.0, 0.0)
    for (_, ours), theirs in zip(made.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.7])
def test_scores_that_rule_the_label_out_leave_all_finite(q: float) -> None:
    head, batch = head_and_batch(0, 1e4)
    made = mean_gce(head, batch, q)
    assert isinstance(made, LossOutput)
    assert all(torch.isfinite(part).all() for part in (made.total, *(g for _, g in made.gradients)))


def test_other_nets_and_looks_are_left_to_autograd() -> None:
    head, batch = head_and_batch(1)
    value, made = mean_gce(Net(None, head), batch, 0.7), mean_gce(head, batch, 0.7)
    assert isinstance(value, torch.Tensor)
    assert value.requires_grad
    assert isinstance(made, LossOutput)
    torch.testing.assert_close(value.detach(), made.total)
    with torch.no_grad():
        assert isinstance(mean_gce(head, batch, 0.7), torch.Tensor)


def test_a_head_with_a_forward_of_its_own_is_asked_for_its_scores() -> None:
    class Doubled(LinearHead):
        def forward(self, f: torch.Tensor) -> Output:
            out = super().forward(f)
            return out._replace(logits=2 * out.logits)

    plain, batch = head_and_batch(1)
    head = Doubled(6, 5, standardize=(plain.mean, plain.std))
    head.load_state_dict(plain.state_dict())
    expected = losses.mean(losses.gce(2 * plain(batch.views[0]).logits, batch.y, 0.7), batch.weight)
    torch.testing.assert_close(mean_gce(head, batch, 0.7), expected)


def test_elr_learns_what_it_learns_by_autograd_and_its_targets_move_alike() -> None:
    class Another(LinearHead):
        """Left to autograd."""

    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(300, 8, generator=g), torch.randint(4, (300,), generator=g)
    method, learned = METHODS["elr"](), []
    for kind in (LinearHead, Another):
        head = kind(8, 4, init="zeros")
        run = Trainer([Net(None, head)], {"train": SplitData(y, FeatureBatches(x), None)}, 4, 0, lambda f, k: head)  # noqa: B023
        run.enter(phases(method, 0.0)[0])
        method.epoch(run)
        learned.append((run.net.linear.weight.detach().clone(), run.ledger["elr_target"].clone()))
    assert float(learned[0][0].norm()) > 0.01
    assert float(learned[0][1].sum()) > 1
    for ours, theirs in zip(*learned, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_probe_learns_what_it_learns_by_autograd() -> None:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(300, 8, generator=g), torch.randint(4, (300,), generator=g)
    learned = []

    def autograds(net: LinearHead, batch: Batch) -> torch.Tensor:
        return by_autograd(net, batch, 0.7)

    for loss in (lambda net, batch: mean_gce(net, batch, 0.7), autograds):
        head = LinearHead(8, 4, init="zeros")
        run = Trainer([Net(None, head)], {"train": SplitData(y, FeatureBatches(x), None)}, 4, 0, lambda f, k: head)  # noqa: B023
        run.enter(phases(METHODS["gce"](), 0.0)[0])
        run.learn(run.net, loss)
        learned.append(run.net.linear.weight.detach().clone())
    assert float(learned[0].norm()) > 0.01
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("autograds", [True, False])
def test_features_standardized_by_the_block_teach_the_same_bits_as_by_the_batch(
    views: int, mapped: bool, autograds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(3)
    x, y = 3 + 2 * torch.randn(views, 300, 8, generator=g), torch.randint(4, (300,), generator=g)
    x = x[0] if views == 1 else x
    before, learned, given_to = x.clone(), [], []
    np.save(tmp_path / "x.npy", x.numpy())
    monkeypatch.setattr(batches, "MEMORY_FRACTION", 0.0)
    spread = mean_and_std(x.view(-1, 8))

    def loss(net: LinearHead, batch: Batch) -> torch.Tensor | LossOutput:
        given_to.append(batch.views[0])
        return by_autograd(net, batch, 0.7) if autograds else mean_gce(net, batch, 0.7)

    for through_net in (False, True):
        head = LinearHead(8, 4, init="zeros", standardize=spread)
        source = FeatureBatches(np.load(tmp_path / "x.npy", mmap_mode="r") if mapped else x)
        assert isinstance(source.features, torch.Tensor) is not mapped
        run = Trainer([Net(None, head)], {"train": SplitData(y, source, None)}, 4, 0, lambda f, k: head)  # noqa: B023
        run.enter(phases(METHODS["gce"](), 0.0)[0])
        run.learn(run.net, loss, through_net=through_net)
        learned.append(run.net.linear.weight.detach().clone())
        assert run.splits["train"].features is source
    assert torch.equal(learned[0], learned[1])
    assert float(learned[0].norm()) > 0.01
    assert torch.equal(x, before)
    raw, ready = torch.cat(given_to[: len(given_to) // 2]), torch.cat(given_to[len(given_to) // 2 :])
    assert not torch.equal(raw, ready)
    torch.testing.assert_close(ready, (raw - spread[0]) / spread[1])


def test_what_a_loss_sees_of_two_nets_or_of_a_head_of_its_own_kind_is_not_standardized() -> None:
    g = torch.Generator().manual_seed(5)
    x, y = 3 + 2 * torch.randn(40, 8, generator=g), torch.randint(4, (40,), generator=g)
    spread = mean_and_std(x)

    class Another(LinearHead):
        """It may have a forward of its own."""

    for kind, count in ((LinearHead, 2), (Another, 1)):
        heads = [kind(8, 4, standardize=spread) for _ in range(count)]
        seen: list[Batch] = []

        def loss(net: LinearHead, batch: Batch) -> torch.Tensor:
            seen.append(batch)  # noqa: B023
            return by_autograd(net, batch, 0.7)

        nets = [Net(None, head) for head in heads]
        run = Trainer(nets, {"train": SplitData(y, FeatureBatches(x), None)}, 4, 0, lambda f, k: heads[k])  # noqa: B023
        phase = replace(phases(METHODS["gce"](), 0.0)[0], nets=count)
        run.enter(phase)
        run.learn(run.nets[0], loss, through_net=True)
        assert seen
        assert all(torch.equal(batch.views[0], x[batch.rows]) for batch in seen)
