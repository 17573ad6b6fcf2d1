"""Numbers as the report shows them."""

from __future__ import annotations

import math


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number as text with ``decimals`` decimals, fewer if it is large; a dash if it is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:,.{max(decimals + 1 - len(str(int(abs(value)))), 0)}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def signed(value: float | None, decimals: int = 2) -> str:
    """Return a difference as text, always with its sign."""
    text = number(value, decimals)
    return f"+{text}" if text[0].isdigit() else text


def count(value: float | None) -> str:
    """Return a whole number as text, with commas."""
    return number(value, 0)
