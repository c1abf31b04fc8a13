"""Soft prompts that live through a training and attack what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.draws import picks
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, whole_words

_WORD = "<soft>"
_PATTERNS = ("a picture of a {}", "{}")


class SoftBank:
    """Some soft prompts of different lengths, each started from random words.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        count: Soft prompts.
        tokens: Numbers of soft tokens; the soft prompts take turns, and so they do with two patterns.
        generator: Draws the words.
        clip_skip: As for `diffusion.conditions.encode`.
    """

    def __init__(
        self, pipe: Any, count: int, tokens: Sequence[int], generator: torch.Generator, *, clip_skip: int | None = None
    ) -> None:
        self._words, self.table = whole_words(pipe.tokenizer), token_table(pipe).float()
        self._kinds = [
            (tokens[row % len(tokens)], _PATTERNS[row // len(tokens) % len(_PATTERNS)]) for row in range(count)
        ]
        self._prompts = {
            (size, pattern): SoftPrompt(pipe, pattern.format(_WORD), {_WORD: size}, clip_skip=clip_skip)
            for size, pattern in set(self._kinds)
        }
        self.scale = LossScale(pipe)
        # Shorter prompts leave the last of their places unused.
        self.vectors = nn.Parameter(self._fresh(count, max(tokens), generator))

    def _fresh(self, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
        words = self._words[picks(len(self._words), count * width, generator)]
        return self.table[words.to(self.table.device)].view(count, width, -1).clone()

    def turn(self, number: int, count: int) -> torch.Tensor:
        """The soft prompts `[count]` whose turn it is in an iteration."""
        return torch.arange(number * count, (number + 1) * count) % len(self.vectors)

    def condition(self, rows: torch.Tensor) -> Condition:
        """What the denoiser reads of these soft prompts, with gradients to `vectors`."""
        states: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        for kind, prompt in self._prompts.items():
            mine = [position for position, row in enumerate(rows.tolist()) if self._kinds[row] == kind]
            if mine:
                own = prompt.condition({_WORD: self.vectors[rows[mine], : kind[0]]}).states
                for position, state in zip(mine, own, strict=True):
                    states[position] = state
        return Condition(torch.stack(states))

    @torch.no_grad()
    def restart(self, optimizer: torch.optim.Optimizer, half: int, generator: torch.Generator) -> None:
        """Start every second soft prompt anew, with what the optimizer remembers of it; `half` says which of them."""
        rows = torch.arange(half % 2, len(self.vectors), 2)
        self.vectors[rows] = self._fresh(len(rows), self.vectors.shape[1], generator)
        for value in optimizer.state.get(self.vectors, {}).values():
            if value.shape == self.vectors.shape:
                value[rows] = 0
