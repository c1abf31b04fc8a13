"""The control of every attack that replaces the prompt: as many pictures, of texts that nobody searched for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks import Attack, Budget, Candidate, Draw
from erasers.attacks.soft import decode, whole_words

if TYPE_CHECKING:
    from erasers.evaluation.profile import Ask


@dataclass(frozen=True, kw_only=True)
class RandomText(Attack):
    """Draws tokens uniformly in place of the prompt.

    An erased model may draw the concept unasked: what an attack gains that drops the prompt is the excess over this one
    with the same n and k, not over the prompt.

    Args:
        k: Tokens.
        images: Pictures a prompt, the plain prompt's included.
        template: Pattern with one `{}` for the tokens.
    """

    name = "random_text"
    space = "text"
    encoder = "none"

    k: int = 16
    images: int = 51
    template: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.images < 1:
            raise ValueError(f"expected k and images of at least 1, got k = {self.k}, images = {self.images}")
        if self.template.count("{}") != 1:
            raise ValueError(f"expected a template with one {{}}, got {self.template!r}")

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(images=self.images)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> torch.Tensor:
        """The ids that texts are drawn from: see `Attack.prepare`."""
        return whole_words(pipe.tokenizer)

    def run(self, pipe: Any, ask: Ask, prepared: torch.Tensor, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        for _ in range(self.images - 1):
            picks = torch.randint(len(prepared), (self.k,), generator=generator, device=generator.device)
            yield Candidate(self.template.format(decode(pipe.tokenizer, prepared[picks.cpu()])))
