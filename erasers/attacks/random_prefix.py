"""The control of every attack by prefixes: as many pictures, with prefixes that nobody searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from erasers.attacks.random_words import RandomWords

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(RandomWords):
    """Puts tokens drawn uniformly in front of the prompt.

    An attack that draws n pictures until one succeeds has to beat this one with the same n and k: what it gains is the
    excess over it.

    Args:
        k: Tokens in front of the prompt.
        images: See `RandomWords`.
    """

    name = "random_prefix"

    k: int = 3

    def text(self, words: str, ask: Ask) -> str:
        """See `RandomWords.text`."""
        return f"{words} {ask.text}"
