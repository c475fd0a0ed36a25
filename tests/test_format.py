"""Numbers as text."""

from __future__ import annotations

import math

from cleantune.utils.format import count, decimal, duration, memory, percent, points, probability

THIN = "\u202f"


def test_percent_and_points_are_signed_and_rounded() -> None:
    assert percent(0.7034) == f"70.3{THIN}%"
    assert percent(-0.1) == f"\u221210.0{THIN}%"
    assert [points(v) for v in (0.0321, -0.005, 0.0001, -0.0001)] == ["+3.2", "\u22120.5", "0.0", "0.0"]


def test_count_and_decimal_have_separators() -> None:
    assert [count(v) for v in (10000, 0.4, -3)] == ["10,000", "0", "\u22123"]
    assert [decimal(v, d) for v, d in ((1234.5678, 2), (0.9, 3))] == ["1,234.57", "0.900"]


def test_probability_does_not_round_small_values_to_zero() -> None:
    assert [probability(v) for v in (0, 0.0001, 0.25)] == ["0.000", "< 0.001", "0.250"]


def test_duration_uses_one_or_two_units() -> None:
    expected = ["0.4 s", "48 s", "1 min 00 s", "3 min 12 s", "1 h 00 min", "1 h 05 min"]
    assert [duration(v).replace(THIN, " ") for v in (0.44, 48.3, 59.7, 192, 3600, 3899)] == expected


def test_memory_is_in_powers_of_ten() -> None:
    assert [memory(v) for v in (1_310_000_000, 512_000_000)] == [f"1.3{THIN}GB", f"512{THIN}MB"]


def test_missing_values_are_a_dash() -> None:
    for form in (count, decimal, percent, probability, duration, memory):
        assert [form(value) for value in (None, math.nan)] == ["–", "–"]
