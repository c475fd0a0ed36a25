"""Throughput of a machine: the slope of time over samples."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleantune.pipeline.throughput import samples_per_second


class Clock:
    """A clock that only advances with the work."""

    def __init__(self, rate: float, overhead: float, compile_seconds: float) -> None:
        self.now, self.rate, self.overhead, self.compile_seconds = 0.0, rate, overhead, compile_seconds
        self.passed: list[int] = []

    def work(self, count: int) -> None:
        self.now += self.overhead + count / self.rate + (0 if count in self.passed else self.compile_seconds)
        self.passed.append(count)

    def measure(self, most: int, budget: float) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: self.now)
            return samples_per_second(self.work, most, budget)


@given(
    rate=st.floats(0.1, 1e6), overhead=st.floats(0, 10), compile_seconds=st.floats(0, 10), most=st.integers(5, 10_000)
)  # fmt: skip
def test_rate_excludes_overhead_and_compilation(rate, overhead, compile_seconds, most):
    assert Clock(rate, overhead, compile_seconds).measure(most, 1e9) == pytest.approx(rate, rel=1e-3)


def test_slow_machine_is_measured_once_within_its_budget():
    clock = Clock(1.0, 0.0, 0.0)
    assert clock.measure(1000, 3.0) == pytest.approx(1.0)
    assert clock.passed == [4, 4]


def test_rate_of_fewer_samples_than_the_first_pass():
    clock = Clock(10.0, 0.0, 0.0)
    assert clock.measure(3, 100.0) == pytest.approx(10.0)
    assert set(clock.passed) == {3}
