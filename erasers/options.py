"""Options of dataclasses: their types, their ranges, and how they are written."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")

Auto: TypeAlias = Literal["auto"]
"""Stands for a value that is found where it is known what it is for."""

LARGEST = 10**9
"""Of the numbers among hyper-parameters: what is more is a slip, and takes for ever."""


def check_fields(options: Any) -> None:
    """Check the type of every field of a dataclass of hyper-parameters; lists become tuples.

    Raises:
        ValueError: Names the field, what it takes and what it got.
    """
    hints = get_type_hints(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(options, field.name, value)
        if not _fits(value, hints[field.name]):
            raise ValueError(f"expected {field.name} as {describe(hints[field.name])}, got {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
                raise ValueError(f"expected {field.name} as a number of at most {LARGEST:,}, got {number}")


def describe(hint: Any) -> str:
    """What a field of that type takes, in words; for error messages and help."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(str(value) for value in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(hint))
    if origin is tuple:
        part = get_args(hint)[0]
        return "comma-separated texts" if part is str else f"{describe(part)}, separated by commas"
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "none",
    }
    return names.get(hint, str(hint))


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def parsed(text: str, hint: Any) -> Any:
    """The value that a text means for a field of that type.

    Raises:
        ValueError: It means none.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        # Words before numbers before free text, so that "auto" is not taken for a text.
        for part in sorted(get_args(hint), key=_looseness):
            try:
                return parsed(text, part)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        return _pick(text, {str(value): value for value in get_args(hint)})
    if origin is tuple:
        return tuple(parsed(part.strip(), get_args(hint)[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        return _pick(text.lower(), {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False})
    if hint is types.NoneType:
        return _pick(text.lower(), {"none": None})
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def _pick(text: str, allowed: Mapping[str, Any]) -> Any:
    if text not in allowed:
        raise ValueError(text)
    return allowed[text]


def _looseness(hint: Any) -> int:
    order: list[Any] = [Literal, types.NoneType, bool, int, float, tuple, str]
    origin = get_origin(hint) or hint
    return order.index(origin) if origin in order else len(order)


def require_above(field: str, value: float, bound: float, *, equal: bool = False) -> None:
    """Refuse a value at or below `bound` (or below it, with `equal`), NaN and infinity.

    Raises:
        ValueError: Names the field and the value.
    """
    if not (value > bound or (equal and value == bound)) or value == float("inf"):
        raise ValueError(f"expected {field} {'of at least' if equal else 'above'} {bound}, got {value!r}")


@dataclass(frozen=True)
class Bound:
    """The least that numbers among the options may be.

    Args:
        fields: Their names, with spaces between.
        least: The bound.
        equal: Whether they may be the bound itself.
    """

    fields: str
    least: float
    equal: bool = True

    def __str__(self) -> str:
        return f"{_listed(self.fields.split())} {'of at least' if self.equal else 'above'} {self.least:g}"

    def holds(self, value: float) -> bool:
        """Whether a value is within."""
        return value > self.least or (self.equal and value == self.least)


def require_bounds(options: Any, bounds: Sequence[Bound]) -> None:
    """Refuse numbers out of their bounds, in one sentence for all that have any.

    Raises:
        ValueError: Names the fields, their bounds and what they are.
    """
    values = {name: (getattr(options, name), bound) for bound in bounds for name in bound.fields.split()}
    if not all(bound.holds(value) for value, bound in values.values()):
        told = _listed([str(value) for value, _ in values.values()])
        raise ValueError(f"expected {_listed([str(bound) for bound in bounds])}, got {told}")


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def known(value: _T | Auto) -> _T:
    """A value that has been found.

    Raises:
        ValueError: It has not.
    """
    if isinstance(value, str) and value == "auto":
        raise ValueError("expected a value, got 'auto', which needs a pipeline to stand for one")
    return value


def require_shares(options: Any, *fields: str, whole: bool = True) -> None:
    """Refuse fields of a dataclass of hyper-parameters that are no shares, from 0 to 1; without `whole` 1 is none.

    Raises:
        ValueError: Names the field and the value.
    """
    for field in fields:
        share = getattr(options, field)
        if not 0 <= share <= 1 or (share == 1 and not whole):
            raise ValueError(f"expected {field} from 0 to {'1' if whole else 'below 1'}, got {share}")


def require_least(options: Any, **bounds: float) -> None:
    """Refuse fields of a dataclass of hyper-parameters below their bounds, NaN and infinity; None and "auto" are none.

    Raises:
        ValueError: Names the field and the value.
    """
    for field, bound in bounds.items():
        if getattr(options, field) not in (None, "auto"):
            require_above(field, getattr(options, field), bound, equal=True)
