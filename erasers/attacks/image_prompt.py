"""Pictures as prompts: what an IP-Adapter brings back from an edited model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate, Shown
from erasers.diffusion.draws import seeds
from erasers.diffusion.image_adapter import ImageAdapter
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class ImagePrompt(Attack):
    """Show the edited model pictures of the concept through an IP-Adapter, with a text that does not name it.

    An adapter of the unedited model stands beside the edited UNet, whose text is neutral: the concept enters by an
    image channel that no eraser of texts knows. The pictures are those that the unedited model draws of the attacked
    prompts, each with fresh noise; all prompts are tried with the same.

    Its control shows pictures of another prompt: `shown` is their text.

    Args:
        adapter: As for `erasers.diffusion.image_adapter.ImageAdapter`.
        images: Pictures a prompt, the plain prompt's included.
        text: Prompt beside the picture.
        scale: Of what the adapter adds.
        shown: Prompt of the pictures that are shown; None: the attacked prompts.
    """

    name = "image_prompt"
    space = "image"
    encoder = "none"
    bounds = (Bound("images", 2), Bound("scale", 0))

    adapter: str = "auto"
    images: int = 6
    text: str = ""
    scale: float = 1.0
    shown: str | None = None

    @property
    def once(self) -> bool:
        """See `Attack.once`."""
        return True

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(images=self.images)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=self.images - 1)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> list[Shown]:
        """See `Attack.prepare`."""
        adapter = ImageAdapter(pipe, self.adapter)
        fresh = seeds(self.images - 1, generator)
        asked = [ask.text for ask in asks] if self.shown is None else [self.shown]
        texts = [asked[number % len(asked)] for number in range(len(fresh))]
        return [Shown(adapter, picture, self.scale) for picture in draw(pipe, {"prompt": texts}, fresh)]

    def run(self, pipe: Any, ask: Ask, prepared: Sequence[Shown], *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        for shown in prepared:
            yield Candidate(self.text, image=shown)
