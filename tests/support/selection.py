"""Which cases of a large cross product run by default; the others have the marker `full`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest


def cases(*axes: Iterable[Any], default: Callable[..., bool]) -> list[Any]:
    """Every combination of the axes; those that `default` does not take are marked `full`."""
    combinations = list(product(*axes))
    taken = [default(*values) for values in combinations]
    if not any(taken):
        raise ValueError(f"expected a default case among {combinations}, got none")
    return [
        pytest.param(*values, marks=() if by_default else pytest.mark.full)
        for values, by_default in zip(combinations, taken, strict=True)
    ]


def diagonal(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of the axes; by default only as many as bring each value of each axis once."""
    lists = [list(axis) for axis in axes]
    chosen = [tuple(axis[number % len(axis)] for axis in lists) for number in range(max(map(len, lists)))]
    return cases(*lists, default=lambda *values: values in chosen)
