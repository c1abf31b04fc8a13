"""Inversion of what the denoiser reads, in the manner of textual inversion (Gal et al., arXiv 2208.01618), but of the
text encoder's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.examples import examples
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import denoising_in_parts
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import random_times
from erasers.diffusion.read_instead import check_instead
from erasers.diffusion.supported import check_drawable
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class StateInversion(Attack):
    """Learn what the denoiser has to read, every state and the pooled vector, to draw what the unedited model draws.

    It begins at what the edited model reads of the prompt and descends `||noise - eps(z_t, t, states)||^2`, or the
    same of velocities along a flow, on pictures of the concept; the picture is drawn with what was learned, from the
    noise of the prompt's seed. So it reaches around every edit of a text encoder, which tokens (`cce`) do not. It has
    hundreds of numbers for each token, and a model that never saw the concept can be led to draw it, too: read the
    success against that of one retrained without it.

    The pictures are those that the unedited model draws of the attacked prompts, each with fresh noise.

    Args:
        steps: Steps of Adam.
        batch: Pictures a step.
        lr: Learning rate, in units of the root mean square of a coordinate of what it begins at.
        pictures: Pictures of the concept to learn from.
    """

    name = "state_inversion"
    space = "embedding"
    encoder = "attacked"
    bounds = (Bound("steps batch pictures", 1), Bound("lr", 0, equal=False))

    steps: int = 500
    batch: int = 8
    lr: float = 0.05
    pictures: int = 25

    def passes(self, pipe: Any) -> Sequence[Pass]:
        """See `Attack.passes`."""
        return [Pass(self.batch)]

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(self.steps * self.batch, 1, 2)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=self.pictures)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> torch.Tensor:
        """Latents of pictures of the concept `[n, c, h, w]`: see `Attack.prepare`."""
        check_instead(pipe)
        return examples(pipe, asks, self.pictures, draw=draw, generator=generator)[1]

    def run(self, pipe: Any, ask: Ask, prepared: torch.Tensor, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        plain = conditions(pipe, [ask.text])
        learned = plain._replace(
            states=nn.Parameter(plain.states.float().clone()),
            pooled=None if plain.pooled is None else nn.Parameter(plain.pooled.float().clone()),
        )
        parameters = [value for value in (learned.states, learned.pooled) if isinstance(value, nn.Parameter)]
        groups = [{"params": [own], "lr": self.lr * float(own.detach().square().mean().sqrt())} for own in parameters]
        optimizer, scale = torch.optim.Adam(groups), LossScale(pipe)
        shape = tuple(prepared.shape[1:])
        with frozen(pipe):
            for _ in range(self.steps):
                latents = prepared[picks(len(prepared), self.batch, generator)]
                times = random_times(pipe, self.batch, generator, shape).to(latents.device)
                noise = gaussian(latents, generator)
                scale.set(denoising_in_parts(pipe, latents, times, noise, learned), parameters)
                optimizer.step()
        found = learned._replace(
            states=learned.states.detach(), pooled=None if learned.pooled is None else learned.pooled.detach()
        )
        yield Candidate(ask.text, condition=found)
