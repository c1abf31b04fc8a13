"""Soft prompts that live through a training and attack what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.attacked import attacked_encoders, vocabulary
from erasers.diffusion.draws import picks
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.rates import Rate, token_rate
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table

_WORD = "<soft>"
_PATTERNS = ("a picture of a {}", "{}")


class SoftBank:
    """Some soft prompts of different lengths, each started from random words.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        count: Soft prompts.
        tokens: Numbers of soft tokens; the soft prompts take turns, and so they do with two patterns.
        generator: Draws the words.
        clip_skip: As the pipeline takes it.
        encoders: Text encoders that soft tokens are in; none: all of CLIP, or the first where none is of CLIP.
    """

    def __init__(
        self,
        pipe: Any,
        count: int,
        tokens: Sequence[int],
        generator: torch.Generator,
        *,
        clip_skip: int | None = None,
        encoders: Sequence[str] = (),
    ) -> None:
        self._pipe, self.encoders = pipe, attacked_encoders(pipe, encoders)
        self._words = vocabulary(pipe, self.encoders).table(pipe)
        self._kinds = [
            (tokens[row % len(tokens)], _PATTERNS[row // len(tokens) % len(_PATTERNS)]) for row in range(count)
        ]
        self._prompts = {
            (size, pattern): SoftPrompt(
                pipe, pattern.format(_WORD), {_WORD: size}, clip_skip=clip_skip, encoders=self.encoders
            )
            for size, pattern in set(self._kinds)
        }
        self.scale = LossScale(pipe)
        # Shorter prompts leave the last of their places unused.
        self.vectors = nn.Parameter(self._fresh(count, max(tokens), generator))

    def rate(self, rate: Rate) -> float:
        """A rate of the soft tokens; "auto" is that of the encoder which takes the smallest steps."""
        return min(token_rate(rate, token_table(self._pipe, name).float()) for name in self.encoders)

    def _fresh(self, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
        rows = picks(len(self._words), count * width, generator)
        return self._words[rows.to(self._words.device)].view(count, width, -1).clone()

    def turn(self, number: int, count: int) -> torch.Tensor:
        """The soft prompts `[count]` whose turn it is in an iteration."""
        return torch.arange(number * count, (number + 1) * count) % len(self.vectors)

    def condition(self, rows: torch.Tensor) -> Condition:
        """What the denoiser reads of these soft prompts, with gradients to `vectors`."""
        order: list[int] = []
        several: list[Condition] = []
        for kind, prompt in self._prompts.items():
            mine = [position for position, row in enumerate(rows.tolist()) if self._kinds[row] == kind]
            if mine:
                order += mine
                several.append(prompt.condition({_WORD: self.vectors[rows[mine], : kind[0]]}))
        return cat(*several).rows(torch.tensor(order).argsort())

    @torch.no_grad()
    def restart(self, optimizer: torch.optim.Optimizer, half: int, generator: torch.Generator) -> None:
        """Start every second soft prompt anew, with what the optimizer remembers of it; `half` says which of them."""
        rows = torch.arange(half % 2, len(self.vectors), 2)
        self.vectors[rows] = self._fresh(len(rows), self.vectors.shape[1], generator)
        for value in optimizer.state.get(self.vectors, {}).values():
            if value.shape == self.vectors.shape:
                value[rows] = 0
