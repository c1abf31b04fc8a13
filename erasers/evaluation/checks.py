"""The values of task files: checks whose messages name the key, what it takes and what it got, and their plain form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mapping(name: str, value: Any, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    """A table whose keys are among the known ones.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected keys and values, got {value!r}")
    if unknown := [key for key in value if not isinstance(key, str) or (known is not None and key not in known)]:
        raise ValueError(f"{name}: expected keys among {', '.join(known or ('texts',))}, got {unknown[0]!r}")
    return value


def count(name: str, value: Any, most: int = 1_000_000) -> int:
    """A whole number from 1 on.

    Args:
        name: For the message.
        value: What was given.
        most: The largest that is no slip.

    Raises:
        ValueError: It is not.
    """
    return int(checked(name, value, int, f"a whole number from 1 to {most}", lambda n: 1 <= n <= most))


def checked(name: str, value: Any, kind: Any, what: str, good: Any = None) -> Any:
    """A value of a type (true and false are no numbers) that passes a test.

    Raises:
        ValueError: It is not.
    """
    wrong_kind = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong_kind or (good is not None and not good(value)):
        raise ValueError(f"{name}: expected {what}, got {value!r}")
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or several, none of them empty.

    Raises:
        ValueError: Something else.
    """
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise ValueError(f"{name}: expected a list of texts, got {value!r}")
    return tuple(listed)


def lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass as YAML and JSON have them: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `lists`."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
