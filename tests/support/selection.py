"""Which cases of a large cross product run by default; the others have the marker `full`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def rows(table: Iterable[Sequence[Any]], default: Callable[..., bool]) -> list[Any]:
    """The rows of a table; those that `default` does not take are marked `full`."""
    table = list(table)
    taken = [default(*row) for row in table]
    if not any(taken):
        raise ValueError(f"expected a default case among {table}, got none")
    return [
        pytest.param(*row, marks=() if by_default else pytest.mark.full)
        for row, by_default in zip(table, taken, strict=True)
    ]


def cases(*axes: Iterable[Any], default: Callable[..., bool]) -> list[Any]:
    """Every combination of the axes; those that `default` does not take are marked `full`."""
    return rows(product(*axes), default)


def diagonal(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of the axes; by default only as many as bring each value of each axis once."""
    lists = [list(axis) for axis in axes]
    chosen = [tuple(axis[number % len(axis)] for axis in lists) for number in range(max(map(len, lists)))]
    return cases(*lists, default=lambda *values: values in chosen)


def only(axis: Iterable[Any], *chosen: Any) -> list[Any]:
    """The values of an axis, of which the chosen ones run by default."""
    values = list(axis)
    missing = [value for value in chosen if value not in values]
    if missing:
        raise ValueError(f"expected chosen values among {values}, got {missing}")
    return cases(values, default=lambda value: value in chosen)
