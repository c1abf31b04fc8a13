"""Which words of a prompt are the concept's, and prompts with others in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erasers.asks import Ask


def terms(concept: Sequence[str], ask: Ask) -> tuple[str, ...]:
    """The words that mean the concept: those given, or what the prompt wants."""
    return tuple(concept) or tuple(ask.wants.values())


def swap(text: str, words: Sequence[str], by: str) -> str:
    """The text with each of the words, where they stand as whole words, replaced; upper case does not matter."""
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: by, text, flags=re.IGNORECASE)
    return " ".join(text.split())
