"""What runs by default of a cross product."""

from __future__ import annotations

from typing import Any

import pytest
from support.selection import cases, diagonal, only


def by_default(parameters: list[Any]) -> list[Any]:
    return [parameter.values for parameter in parameters if not parameter.marks]


def test_a_diagonal_has_every_value_of_every_axis_and_the_rest_is_full():
    axes = ["abcde", "xy", "123"]
    parameters = diagonal(*axes)
    assert len({parameter.values for parameter in parameters}) == len(parameters) == 5 * 2 * 3
    chosen = by_default(parameters)
    assert len(chosen) == 5
    assert [set(values) for values in zip(*chosen, strict=True)] == [set(axis) for axis in axes]
    left = [parameter for parameter in parameters if parameter.marks]
    assert all(parameter.marks == [pytest.mark.full] or parameter.marks == (pytest.mark.full,) for parameter in left)


def test_chosen_values_run_by_default():
    assert by_default(only(["a", "b", "c"], "b")) == [("b",)]
    with pytest.raises(ValueError, match="expected chosen values among"):
        only(["a", "b"], "a", "d")
    with pytest.raises(ValueError, match="expected a default case"):
        cases(["a", "b"], default=lambda letter: letter == "d")
    assert by_default(cases("ab", [1, 2], default=lambda letter, number: number == 2)) == [("a", 2), ("b", 2)]
