"""Pictures of the concept, for attacks that learn from some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.asks import Ask
from erasers.attacks.attack import Draw
from erasers.diffusion.draws import seeds
from erasers.diffusion.latents import latents_of


def examples(
    pipe: Any, asks: Sequence[Ask], count: int, *, draw: Draw, generator: torch.Generator
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Texts of the attacked prompts in turn, and the latents of pictures of them, each with fresh noise.

    Args:
        pipe: The attacked pipeline.
        asks: The attacked prompts.
        count: Of the pictures.
        draw: Draws with the unedited model.
        generator: Of the noise.

    Returns:
        `count` texts, and latents `[count, c, h, w]`.
    """
    fresh = seeds(count, generator)
    texts = tuple(asks[number % len(asks)].text for number in range(count))
    return texts, latents_of(pipe, draw(pipe, {"prompt": list(texts)}, fresh))
