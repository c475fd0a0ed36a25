"""ELR: its targets, its loss, and that both are those of the paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_contract import _one_thread, blobs, loop_on, quick, trained  # noqa: F401 - a fixture
from torch import Tensor, nn

from cleantune.errors import UserError
from cleantune.functional import losses
from cleantune.methods.elr import ELR, TARGET
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Batch, Output


class Fixed(nn.Module):
    """A net whose scores are its parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Output:
        return Output(self.logits, self.logits, x)


class Remembering:
    """The part of a run that ELR's loss uses."""

    def __init__(self, targets: Tensor) -> None:
        self.ledger = Ledger(len(targets))
        self.ledger.write(TARGET, targets)


def step(method: ELR, targets: Tensor, rows: Tensor, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and targets after one batch."""
    run, net = Remembering(targets), Fixed(logits)
    value = method.loss(run)(net, Batch(rows, y, torch.ones(len(y)), (torch.zeros(len(y), 2),)))  # type: ignore[arg-type]
    value.backward()  # type: ignore[no-untyped-call]
    assert net.logits.grad is not None
    return value.detach(), net.logits.grad, run.ledger[TARGET]


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    targets = 0.6 * torch.rand(6, 4, generator=g).softmax(1)
    return targets, torch.tensor([4, 0, 5]), 3 * torch.randn(3, 4, generator=g), torch.tensor([1, 3, 0])


def test_loss_and_targets_equal_a_loop_in_float64() -> None:
    targets, rows, logits, y = problem()
    method = ELR(elr_beta=0.8, elr_lambda=5.0)
    value, _, after = step(method, targets, rows, logits, y)
    total, expected = 0.0, targets.double().clone()
    for k, row in enumerate(rows.tolist()):
        e = [math.exp(v) for v in logits[k].double().tolist()]
        p = [min(max(v / sum(e), 1e-4), 1 - 1e-4) for v in e]
        for c in range(4):
            expected[row, c] = 0.8 * expected[row, c] + 0.2 * p[c] / sum(p)
        agreement = sum(float(expected[row, c]) * p[c] for c in range(4))
        total += -math.log(e[int(y[k])] / sum(e)) + 5.0 * math.log(1 - agreement)
    torch.testing.assert_close(value, torch.tensor(total / 3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after, expected.float())
    assert torch.equal(after[[1, 2, 3]], targets[[1, 2, 3]]), "other rows stay"


def test_with_lambda_zero_it_is_cross_entropy() -> None:
    """Acceptance check 2 of the spec."""
    targets, rows, logits, y = problem()
    value, gradient, _ = step(ELR(elr_lambda=0.0), targets, rows, logits, y)
    plain = logits.clone().requires_grad_()
    losses.cross_entropy(plain, y).mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value, losses.cross_entropy(logits, y).mean())
    torch.testing.assert_close(gradient, plain.grad)


def test_after_k_visits_of_a_constant_prediction_a_target_sums_to_one_minus_beta_to_the_k() -> None:
    """Acceptance check 2 of the spec."""
    method, p, target = ELR(elr_beta=0.9), torch.tensor([[0.7, 0.2, 0.1]]), torch.zeros(1, 3)
    for k in range(1, 8):
        target = method.moved(target, p)
        assert float(target.sum()) == pytest.approx(1 - 0.9**k, abs=1e-6)
        torch.testing.assert_close(target / target.sum(), p)


def test_no_gradient_flows_through_the_target() -> None:
    """Acceptance check 2 of the spec."""
    target = torch.rand(3, 4).softmax(1).requires_grad_()
    losses.elr_regularizer(torch.rand(3, 4).softmax(1).requires_grad_(), target).sum().backward()  # type: ignore[no-untyped-call]
    assert target.grad is None


def test_the_regularizer_pushes_the_prediction_towards_the_target() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    losses.elr_regularizer(logits.softmax(1), torch.tensor([[0.1, 0.8, 0.1]])).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0].argmin() == 1
    assert logits.grad[0, 1] < 0


@pytest.mark.parametrize("changes", [{}, {"corrected": True}, {"probe_first": True}])
def test_targets_live_in_the_ledger_and_sum_to_one_at_most(changes: dict[str, Any]) -> None:
    data, method = blobs(0.4, size=128), quick("elr", "all", **changes)
    run, rows = trained(data, method, loop_on(data, "all"))
    target = run.ledger[TARGET]
    assert target.shape == (128, 4)
    assert float(target.sum(1).max()) <= 1 + 1e-5
    assert float(target.sum(1).min()) > (0.99 if "probe_first" in changes else 0.5)
    assert rows[0]["phase"] == ("probe" if "probe_first" in changes else "tune")


def test_a_row_that_is_not_in_the_ledger_and_a_table_that_does_not_fit_are_said() -> None:
    ledger = Ledger(4)
    ledger.allocate("t", 2)
    with pytest.raises(ValueError, match="rows 1 to 4 of 4"):
        ledger.update("t", torch.tensor([1, 4]), torch.ones(2, 2))
    with pytest.raises(UserError, match=r"takes .* GiB, but .* GiB are free; take fewer samples"):
        Ledger(10**9).allocate("t", 10**6)
