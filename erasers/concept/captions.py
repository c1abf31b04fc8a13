"""Everyday captions, written for this library (CC0), that erasures keep when nobody says what to keep."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from erasers.concept.concept import Concept
from erasers.concept.words import kinds_in, mentions

NAME = "everyday@1"
"""Changes with every change of `captions.txt`."""
ENOUGH = 50
"""A concept that preserves so many texts of its own is given no captions."""


@lru_cache(maxsize=1)
def everyday() -> tuple[str, ...]:
    """All of them: people, animals, food, places, art and objects."""
    return tuple(files("erasers.concept").joinpath("captions.txt").read_text(encoding="utf-8").splitlines())


def captions_without(concepts: Sequence[Concept], texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """Those that name none of the concepts, by any of their names, in the plural, or by a kind of it.

    Args:
        concepts: What is erased.
        texts: Of these; of the everyday ones when None.
    """
    terms = [term.lower() for concept in concepts for term in concept.terms()]
    return tuple(
        text
        for text in (everyday() if texts is None else texts)
        if not any(mentions(text, term) for term in terms) and kinds_in(text).isdisjoint(terms)
    )


def caption_meta(preserve: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The texts among preserved ones that are no everyday captions, and how the others are recorded; {} for none."""
    known = set(everyday())
    own, count = [text for text in preserve if text not in known], sum(text in known for text in preserve)
    digest = hashlib.sha256("\n".join(everyday()).encode()).hexdigest()
    return own, {"name": NAME, "sha256": digest, "count": count} if count else {}
