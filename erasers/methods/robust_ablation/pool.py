"""Noised pictures with what a frozen denoiser says of them: asked once, learned from many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.noise import noise_again

_EVERY = 5


@dataclass(frozen=True)
class Pool:
    """Noised pictures x_t of prompts.

    Args:
        noisy: x_t `[n, c, h, w]`.
        times: t `[n]`.
        truth: What a perfect denoiser predicts of x_t `[n, c, h, w]`.
        prompts: Number of the prompt of each `[n]`.
        goal: What a student is to predict `[n, c, h, w]`.
    """

    noisy: torch.Tensor
    times: torch.Tensor
    truth: torch.Tensor
    prompts: torch.Tensor
    goal: torch.Tensor

    def rows(self, index: torch.Tensor) -> Pool:
        """Some of them."""
        return Pool(*(getattr(self, name)[index] for name in Pool.__dataclass_fields__))


def distance_from_truth(pipe: Any, pool: Pool, condition: Condition) -> Summands:
    """|| eps(x_t, c) - noise ||^2, or of v, of conditions `[n]`: what attacks descend on."""

    def error(rows: slice) -> torch.Tensor:
        guess = predict(pipe, pool.noisy[rows], pool.times[rows], condition.part(rows))
        return functional.mse_loss(guess, pool.truth[rows])

    return mean_in_parts(len(pool.times), error)


@dataclass(frozen=True)
class Maker:
    """How pools are made.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        empty: The condition of the empty prompt.
        way: How pictures are drawn.
        noises: Times and noises of each picture.
        generator: Source of every random number.
        advance: Told of every picture drawn and of every goal.
    """

    pipe: Any
    empty: Condition
    way: Way
    noises: int
    generator: torch.Generator
    advance: Callable[[int], None]

    def make(self, asked: Condition, wanted: Condition, count: int, *, blank: int | None = None) -> Pool:
        """`count` pictures drawn of prompts in turn, and eps*(x_t, t, `wanted`) of their noised latents.

        With `blank`, every fifth of them is told by that row of `wanted` in place of its own.
        """
        prompts = torch.arange(count) % len(asked.states)
        drawn = draw_pictures(self.pipe, asked.rows(prompts), self.empty, self.way, self.generator, self.advance)
        pictures, prompts = drawn.repeat(self.noises, *[1] * (drawn.dim() - 1)), prompts.repeat(self.noises)
        if blank is not None:
            prompts[_EVERY - 1 :: _EVERY] = blank
        noisy, times, truth = noise_again(self.pipe, pictures, self.generator)
        pool = Pool(noisy, times, truth, prompts, truth)
        return replace(pool, goal=self.goals(pool, wanted))

    @torch.no_grad()
    def goals(self, pool: Pool, wanted: Condition) -> torch.Tensor:
        """eps*(x_t, t, `wanted`) `[n, c, h, w]` of a pool."""
        predictions = []
        for index in torch.arange(len(pool.times)).split(self.way.batch):
            batch = pool.rows(index)
            predictions.append(predict(self.pipe, batch.noisy, batch.times, wanted.rows(batch.prompts)))
            self.advance(len(index))
        return torch.cat(predictions)
