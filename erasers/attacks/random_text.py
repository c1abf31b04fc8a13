"""The control of every attack that replaces the prompt: as many pictures, of texts that nobody searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from erasers.attacks.random_words import RandomWords

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class RandomText(RandomWords):
    """Draws tokens uniformly in place of the prompt.

    An erased model may draw the concept unasked: what an attack gains that drops the prompt is the excess over this one
    with the same n and k, not over the prompt.

    Args:
        k: Tokens.
        images: See `RandomWords`.
        template: Pattern with one `{}` for the tokens.
    """

    name = "random_text"

    k: int = 16
    template: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise ValueError(f"expected a template with one {{}}, got {self.template!r}")

    def text(self, words: str, ask: Ask) -> str:
        """See `RandomWords.text`."""
        return self.template.format(words)
