"""Numbers, shares, durations and sizes as text."""

from __future__ import annotations

THIN = "\N{NARROW NO-BREAK SPACE}"

MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as `70.3 %`."""
    return "–" if share is None else f"{100 * share:.{digits}f}{THIN}%".replace("-", MINUS)


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed: `+3.2`."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def count(value: float | None) -> str:
    """A whole number with separators: `10,000`."""
    return "–" if value is None else f"{value:,.0f}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Seconds as `0.4 s`, `48 s`, `3 min 12 s` or `1 h 04 min`."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02}{THIN}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{THIN}h {minutes % 60:02}{THIN}min"


def memory(size: float | None) -> str:
    """Bytes as `512 MB` or `1.3 GB` (powers of ten)."""
    if size is None:
        return "–"
    return f"{size / 1e9:.1f}{THIN}GB" if size >= 1e9 else f"{size / 1e6:.0f}{THIN}MB"
