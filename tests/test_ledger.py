"""The per-sample memory: running means, copies, errors, and resume."""

from __future__ import annotations

import pytest
import torch

from cleantune.errors import UserError
from cleantune.methods.ledger import Ledger


def test_running_mean_equals_the_mean_across_a_reload() -> None:
    values = torch.rand(7, 5, 3, generator=torch.Generator().manual_seed(0))
    ledger = Ledger(5)
    for k, value in enumerate(values):
        if k == 4:
            state = {name: column.clone() for name, column in ledger.state_dict().items()}
            ledger = Ledger(5)
            ledger.load_state_dict(state)
        mean = ledger.update_mean("p", value)
        torch.testing.assert_close(mean, values[: k + 1].mean(0))
        assert torch.equal(mean, ledger["p"])


def test_reloaded_means_continue_bitwise() -> None:
    one, two = Ledger(4), Ledger(4)
    for value in torch.rand(3, 4):
        one.update_mean("p", value)
    two.load_state_dict(one.state_dict())
    value = torch.rand(4)
    assert torch.equal(one.update_mean("p", value), two.update_mean("p", value))


def test_a_removed_mean_starts_again() -> None:
    ledger = Ledger(3)
    ledger.update_mean("a", torch.ones(3))
    ledger.update_mean("b", torch.ones(3))
    ledger.remove("a", "never there")
    assert "a" not in ledger
    assert torch.equal(ledger.update_mean("a", torch.full((3,), 5.0)), torch.full((3,), 5.0))
    assert torch.equal(ledger.update_mean("b", torch.full((3,), 5.0)), torch.full((3,), 3.0))


def test_written_values_are_copies_without_gradient() -> None:
    ledger, value = Ledger(2), torch.ones(2, requires_grad=True)
    ledger.write("a", value)
    with torch.no_grad():
        value += 1
    assert ledger["a"].tolist() == [1, 1]
    assert not ledger["a"].requires_grad


def test_a_column_of_another_length_raises() -> None:
    with pytest.raises(ValueError, match=r"column 'p' has 3 rows, the ledger 2"):
        Ledger(2).write("p", torch.zeros(3))
    with pytest.raises(ValueError, match="'p'"):
        Ledger(2).load_state_dict({"p": torch.zeros(1)})


def test_a_missing_column_names_the_others() -> None:
    ledger = Ledger(2)
    ledger.write("late_p", torch.zeros(2))
    with pytest.raises(KeyError, match=r"no column 'p'.*late_p"):
        ledger["p"]


def test_an_empty_ledger_takes_means() -> None:
    ledger = Ledger(0)
    ledger.update_mean("p", torch.zeros(0))
    assert ledger.update_mean("p", torch.zeros(0)).shape == (0,)


def test_update_of_a_row_outside_the_ledger_raises() -> None:
    ledger = Ledger(4)
    ledger.allocate("t", 2)
    with pytest.raises(ValueError, match="rows 1 to 4 of 4"):
        ledger.update("t", torch.tensor([1, 4]), torch.ones(2, 2))


def test_a_column_that_does_not_fit_into_memory_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"takes .* GiB, but .* GiB are free; take fewer samples"):
        Ledger(10**9).allocate("t", 10**6)
