"""ELR: its targets and its loss, against a loop in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_contract import _one_thread, blobs, loop_on, quick, trained  # noqa: F401 - a fixture
from torch import Tensor, nn

from cleantune.functional import losses
from cleantune.methods.elr import ELR, TARGET
from cleantune.methods.ledger import Ledger
from cleantune.methods.protocol import Batch, Output


class FixedLogits(nn.Module):
    """A network whose logits are its parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Output:
        return Output(self.logits, self.logits, x)


class LedgerRun:
    """The part of a run that ELR's loss uses."""

    def __init__(self, targets: Tensor) -> None:
        self.ledger = Ledger(len(targets))
        self.ledger.write(TARGET, targets)


def step(method: ELR, targets: Tensor, rows: Tensor, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient and targets after one batch."""
    run, net = LedgerRun(targets), FixedLogits(logits)
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


def test_lambda_zero_is_cross_entropy() -> None:
    targets, rows, logits, y = problem()
    value, gradient, _ = step(ELR(elr_lambda=0.0), targets, rows, logits, y)
    plain = logits.clone().requires_grad_()
    losses.cross_entropy(plain, y).mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value, losses.cross_entropy(logits, y).mean())
    torch.testing.assert_close(gradient, plain.grad)


def test_targets_sum_to_one_minus_beta_to_the_number_of_visits() -> None:
    method, p, run = ELR(elr_beta=0.9), torch.tensor([[0.7, 0.2, 0.1]]), LedgerRun(torch.zeros(1, 3))
    for k in range(1, 8):
        target = method.updated_targets(run, torch.tensor([0]), p)  # type: ignore[arg-type]
        assert float(target.sum()) == pytest.approx(1 - 0.9**k, abs=1e-6)
        torch.testing.assert_close(target / target.sum(), p)


def test_no_gradient_flows_through_the_target() -> None:
    target = torch.rand(3, 4).softmax(1).requires_grad_()
    losses.elr_regularizer(torch.rand(3, 4).softmax(1).requires_grad_(), target).sum().backward()  # type: ignore[no-untyped-call]
    assert target.grad is None


def test_the_regularizer_moves_predictions_to_the_target() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    losses.elr_regularizer(logits.softmax(1), torch.tensor([[0.1, 0.8, 0.1]])).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0].argmin() == 1
    assert logits.grad[0, 1] < 0


@pytest.mark.parametrize("changes", [{}, {"corrected": True}, {"probe_first": True}])
def test_targets_are_in_the_ledger_and_sum_to_at_most_one(changes: dict[str, Any]) -> None:
    data, method = blobs(0.4, size=128), quick("elr", "all", **changes)
    run, rows = trained(data, method, loop_on(data, "all"))
    target = run.ledger[TARGET]
    assert target.shape == (128, 4)
    assert float(target.sum(1).max()) <= 1 + 1e-5
    assert float(target.sum(1).min()) > (0.99 if "probe_first" in changes else 0.5)
    assert rows[0]["phase"] == ("probe" if "probe_first" in changes else "tune")
