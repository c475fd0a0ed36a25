"""Numbers as text: counts, fractions, scores, durations and sizes; `–` for a missing value."""

from __future__ import annotations

import math

THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
MISSING = "–"


def count(value: float | None) -> str:
    """Return a whole number with separators: `10,000`."""
    return decimal(value, 0)


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals: `0.912`."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace("-", MINUS)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction in percent: `70.3 %`."""
    return MISSING if fraction is None or math.isnan(fraction) else f"{decimal(100 * fraction, digits)}{THIN}%"


def points(difference: float) -> str:
    """Return a difference of fractions in percentage points, signed: `+3.2`."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def probability(value: float | None) -> str:
    """Return a probability or score with three decimals; small ones are not rounded to zero: `< 0.001`."""
    return "< 0.001" if value is not None and 0 < value < 0.0005 else decimal(value)


def duration(seconds: float | None) -> str:
    """Return seconds as `0.4 s`, `48 s`, `3 min 12 s` or `1 h 04 min`."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f}{THIN}s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}{THIN}s"
    if rounded < 3600:
        return f"{rounded // 60}{THIN}min {rounded % 60:02}{THIN}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{THIN}h {minutes % 60:02}{THIN}min"


def memory(size: float | None) -> str:
    """Return bytes as `512 MB` or `1.3 GB` (powers of ten)."""
    if size is None or math.isnan(size):
        return MISSING
    return f"{size / 1e9:.1f}{THIN}GB" if size >= 1e9 else f"{size / 1e6:.0f}{THIN}MB"
