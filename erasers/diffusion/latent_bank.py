"""What a frozen denoiser says on its own way to a picture: computed once, drawn from in every iteration of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.table import adaptor_of, denoiser_of
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import flows, sampler, step_back, time_grid


@dataclass(frozen=True)
class LatentBank:
    """Latents on the way to pictures, and what the frozen denoiser said of them.

    Args:
        latents: x_t `[n, c, h, w]`, of unit variance.
        times: t `[n]`.
        prompts: Which prompt each is on its way to `[n]`, on the CPU as all numbers of rows are.
        conditional: eps*(x_t, t, c) `[n, c, h, w]`.
        empty: eps*(x_t, t, "") `[n, c, h, w]`.
        pictures: x_0 `[pictures, c, h, w]`, where the ways end.
        prompts_of_pictures: `[pictures]`.
    """

    latents: torch.Tensor
    times: torch.Tensor
    prompts: torch.Tensor
    conditional: torch.Tensor
    empty: torch.Tensor
    pictures: torch.Tensor
    prompts_of_pictures: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def draw(self, count: int, generator: torch.Generator) -> LatentBank:
        """A random part of the latents, with replacement."""
        index = picks(len(self), count, generator)
        parts = {name: getattr(self, name)[index] for name in ("latents", "times", "prompts", "conditional", "empty")}
        return replace(self, **parts)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def take(self, other: LatentBank) -> None:
        """Become another of the same size, in place."""
        for name, value in other.tensors().items():
            getattr(self, name).copy_(value)


@torch.no_grad()
def ask_again(pipe: Any, bank: LatentBank, condition: Condition, empty: Condition, batch: int = 8) -> LatentBank:
    """The same latents with what the denoiser says of them now; conditions as for `sample_bank`."""
    conditional, unconditional = [], []
    for index in torch.arange(len(bank)).split(batch):
        noisy, times = bank.latents[index], bank.times[index]
        both = cat(condition.rows(bank.prompts[index]), empty.rows(torch.zeros(len(index), dtype=torch.long)))
        asked, nothing = predict(pipe, torch.cat([noisy, noisy]), times.repeat(2), both).chunk(2)
        conditional.append(asked)
        unconditional.append(nothing)
    return replace(bank, conditional=torch.cat(conditional), empty=torch.cat(unconditional))


@dataclass(frozen=True)
class Way:
    """How pictures are drawn for a bank.

    Args:
        steps: Steps of DDIM, or of the pipeline's own sampler along a flow.
        guidance: Guidance scale; models that read it read this one, those that are never guided none.
        batch: Pictures drawn together.
        size: Of the pictures in pixels; None: the model's own.
    """

    steps: int = 50
    guidance: float = 3.0
    batch: int = 8
    size: int | None = None


def calls_a_step(pipe: Any, *, kept: bool) -> int:
    """How often the denoiser is asked about a latent in a step of drawing.

    Args:
        pipe: The pipeline.
        kept: Whether what it says is kept, as `sample_bank` does, or `draw_pictures` draws alone.
    """
    guides = adaptor_of(pipe).guides(pipe)
    return 2 + (guides == "embedded") if kept else 1 + (guides == "twice")


def sample_bank(
    pipe: Any,
    condition: Condition,
    empty: Condition,
    way: Way,
    *,
    rounds: int,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda count: None,
) -> LatentBank:
    """Draw pictures with classifier-free guidance and keep what was met on the way, at the time it belongs to.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        condition: Of the prompts `[prompts]`.
        empty: Of the empty prompt `[1]`.
        way: How they are drawn.
        rounds: Pictures of each prompt.
        generator: Draws the noise.
        advance: Told of every picture.
    """
    order = torch.arange(len(condition.states)).repeat(rounds)
    shape = latent_shape(pipe, way.size)
    walks = []
    for index in order.split(way.batch):
        noise = gaussian(torch.empty(len(index), *shape, device=denoiser_of(pipe).device), generator)
        met: list[Met] = []
        pictures = _walk(pipe, condition.rows(index), empty, noise, way, met)
        latents, times, conditional, nothing = (torch.cat(values) for values in zip(*met, strict=True))
        walks.append(LatentBank(latents, times, index.repeat(way.steps), conditional, nothing, pictures, index))
        advance(len(index))
    fields = LatentBank.__dataclass_fields__
    return LatentBank(**{name: torch.cat([getattr(walk, name) for walk in walks]) for name in fields})


def draw_pictures(
    pipe: Any,
    condition: Condition,
    empty: Condition,
    way: Way,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """x_0 `[n, c, h, w]`, one for each row of the condition; arguments as for `sample_bank`."""
    pictures = []
    for index in torch.arange(len(condition.states)).split(way.batch):
        noise = gaussian(
            torch.empty(len(index), *latent_shape(pipe, way.size), device=denoiser_of(pipe).device), generator
        )
        pictures.append(_walk(pipe, condition.rows(index), empty, noise, way))
        advance(len(index))
    return torch.cat(pictures)


Met = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Latents, times, and what the denoiser says of them with the prompt and without, `[n, ...]` each."""


@torch.no_grad()
def _walk(
    pipe: Any,
    condition: Condition,
    empty: Condition,
    latents: torch.Tensor,
    way: Way,
    met: list[Met] | None = None,
) -> torch.Tensor:
    """x_0 `[n, c, h, w]` where the ways from latents end; `met` gets what is met in each step."""
    shape, adaptor = tuple(latents.shape[1:]), adaptor_of(pipe)
    guides = adaptor.guides(pipe)
    both = cat(condition, empty.rows(torch.zeros(len(latents), dtype=torch.long)))
    step = _stepper(pipe, way.steps, shape)
    for number, time in enumerate(time_grid(pipe, way.steps, shape)):
        times = torch.full((len(latents),), time, device=latents.device)
        if met is None and guides != "twice":
            guided = predict(pipe, latents, times, condition, way.guidance)
        else:
            said = predict(pipe, torch.cat([latents, latents]), times.repeat(2), both)
            conditional, unconditional = said.chunk(2)
            if met is not None:
                met.append((latents, times, conditional, unconditional))
            guided = conditional
            if guides == "twice":
                guided = adaptor.guided(conditional, unconditional, way.guidance)
            elif guides == "embedded":
                guided = predict(pipe, latents, times, condition, way.guidance)
        latents = step(number, times, latents, guided)
    return latents


Step = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(number of the step, times `[n]`, latents, prediction) -> latents after it."""


def _stepper(pipe: Any, steps: int, shape: tuple[int, ...]) -> Step:
    """DDIM where the schedule is of alphas, else the pipeline's own sampler, which may look back on earlier steps."""
    if flows(pipe):
        scheduler = sampler(pipe, steps, shape)

        def follow(number: int, times: torch.Tensor, latents: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(
                scheduler.step(predicted, scheduler.timesteps[number], latents, return_dict=False)[0]
            )

        return follow
    grid = [*time_grid(pipe, steps, shape)[1:], -1]

    def ddim(number: int, times: torch.Tensor, latents: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        return step_back(pipe, latents, times, torch.full_like(times, grid[number]), predicted)

    return ddim
