"""What the controls share: as many pictures as an attack, with words that nobody searched for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget
from erasers.attacks.candidate import Candidate
from erasers.diffusion.draws import picks
from erasers.diffusion.tokens import decode, tokenizer_of, whole_words

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class RandomWords(Attack):
    """Draws tokens uniformly among those that can be typed as words; subclasses say where they stand.

    Tokens are those of the pipeline's first text encoder; others read the text as it is typed.

    Args:
        k: Tokens.
        images: Pictures a prompt, the plain prompt's included; 51 is what UnlearnDiffAtk draws.
    """

    space = "text"
    encoder = "none"

    k: int
    images: int = 51

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.images < 1:
            raise ValueError(f"expected k and images of at least 1, got k = {self.k}, images = {self.images}")

    @abstractmethod
    def text(self, words: str, ask: Ask) -> str:
        """The text to draw, given the drawn words."""

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(images=self.images)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> torch.Tensor:
        """The ids that words are drawn from: see `Attack.prepare`."""
        return whole_words(tokenizer_of(pipe, "text_encoder"))

    def run(self, pipe: Any, ask: Ask, prepared: torch.Tensor, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        tokenizer = tokenizer_of(pipe, "text_encoder")
        for _ in range(self.images - 1):
            drawn = prepared[picks(len(prepared), self.k, generator)]
            yield Candidate(self.text(decode(tokenizer, drawn), ask))
