"""Location tokens: new embeddings, one for each bin of the grid, in prompts that say where a concept is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.concept import names
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.soft import SoftPrompt


class LocatedPrompt:
    """A prompt with the names of concepts and the tokens of the bins in which they are behind it.

    Words that there is no room for leave from the end of the prompt, never the names and tokens.

    Args:
        pipe: A pipeline with one CLIP text encoder.
        prompt: A caption.
        bins: Name of a concept -> the bins that it covers; those without bins are not said.
        clip_skip: As the pipeline takes it.

    Raises:
        ValueError: No room for the tokens alone.
    """

    def __init__(self, pipe: Any, prompt: str, bins: Mapping[str, Sequence[int]], clip_skip: int | None = None) -> None:
        self._pipe, self._prompt, self._skip = pipe, prompt, clip_skip
        self._bins = {f"<{number}>": list(own) for number, own in enumerate(bins.values()) if own}
        self._soft = _fitted(pipe, prompt, {name: own for name, own in bins.items() if own}, self._bins, clip_skip)

    def condition(self, tokens: torch.Tensor) -> Condition:
        """What the denoiser reads of it `[1]`, with gradients to the tokens `[bins, d]`."""
        if self._soft is None:
            return adaptor_of(self._pipe).encode(self._pipe, [self._prompt], self._skip)
        return self._soft.condition({word: tokens[own] for word, own in self._bins.items()})


def _fitted(
    pipe: Any,
    prompt: str,
    bins: Mapping[str, Sequence[int]],
    places: Mapping[str, Sequence[int]],
    clip_skip: int | None,
) -> SoftPrompt | None:
    """The soft prompt with as many words as there is room for; None where nothing is located."""
    if not bins:
        return None
    counts, words = {place: len(own) for place, own in places.items()}, prompt.split()
    while True:
        text = " ".join(words)
        said = [place if names(text, name) else f"{name} {place}" for name, place in zip(bins, places, strict=True)]
        try:
            return SoftPrompt(pipe, " ".join([*words, *said]), counts, clip_skip=clip_skip)
        except ValueError:
            if not words:
                raise
            words.pop()
