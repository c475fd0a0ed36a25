import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.pipeline.throughput import _rate


class Clock:
    """Time that passes only where work says so."""

    def __init__(self, rate: float, begins: float, compiles: float) -> None:
        self.now, self.rate, self.begins, self.compiles = 0.0, rate, begins, compiles
        self.passed: list[int] = []

    def work(self, count: int) -> None:
        self.now += self.begins + count / self.rate + (0 if count in self.passed else self.compiles)
        self.passed.append(count)

    def measured(self, most: int, budget: float) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: self.now)
            return _rate(self.work, most, budget)


@given(
    rate=st.floats(0.1, 1e6), begins=st.floats(0, 10), compiles=st.floats(0, 10), most=st.integers(5, 10_000)
)  # fmt: skip
def test_neither_what_a_pass_takes_to_begin_nor_what_it_compiles_counts_as_samples(rate, begins, compiles, most):
    assert Clock(rate, begins, compiles).measured(most, 1e9) == pytest.approx(rate, rel=1e-3)


def test_a_machine_too_slow_for_a_second_number_is_not_kept_beyond_its_budget():
    clock = Clock(1.0, 0.0, 0.0)
    assert clock.measured(1000, 3.0) == pytest.approx(1.0)
    assert clock.passed == [4, 4]


def test_fewer_samples_than_the_first_number_are_passed_all_the_same():
    clock = Clock(10.0, 0.0, 0.0)
    assert clock.measured(3, 100.0) == pytest.approx(10.0)
    assert set(clock.passed) == {3}
