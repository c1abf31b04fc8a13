"""Numbers and settings of a leaderboard in words, the same in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasers.evaluation.scores.bootstrap import Estimate


def score_text(estimate: Estimate, digits: int = 2) -> tuple[str, str]:
    """A value and its interval to some decimals."""
    value, low, high = (number_text(x, digits) for x in (estimate.value, estimate.low, estimate.high))
    return value, f"{low} to {high}"


def number_text(value: float, digits: int = 2) -> str:
    """A number to some decimals, never a negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def digits_text(value: float) -> str:
    """A number of any size to three significant digits."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def size_text(nbytes: float) -> str:
    """A number of bytes in a readable unit."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    unit, factor = next(((u, f) for u, f in (("kB", 1e3), ("MB", 1e6)) if nbytes < 999.5 * f), ("GB", 1e9))
    return f"{nbytes / factor:.3g} {unit}"


def time_text(seconds: float) -> str:
    """A time in a readable unit."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.3g} h"


def mean_text(value: float) -> str:
    """The mean of a count: whole from 100 on."""
    return f"{value:.0f}" if value >= 99.5 or value == int(value) else f"{value:.1f}"


def options_text(options: Mapping[str, Any]) -> str:
    """Hyper-parameters as `name=value`, in order."""
    return ", ".join(f"{name}={options[name]}" for name in sorted(options))
