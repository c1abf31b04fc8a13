"""What a frozen denoiser says on its own way to a picture: computed once, drawn from in every iteration of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from erasers.diffusion.soft import encode, gaussian, noised, predicts_velocity, target_of, tokenise


class Condition(NamedTuple):
    """What the denoiser reads of prompts.

    Args:
        states: `[n, tokens, d]`.
        pooled: `[n, p]`, which SDXL has beside them.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Condition:
        """Those of some prompts, in that order."""
        index = index.to(self.states.device)
        return Condition(self.states[index], None if self.pooled is None else self.pooled[index])

    def part(self, rows: slice) -> Condition:
        """Those of neighbouring rows."""
        return Condition(self.states[rows], None if self.pooled is None else self.pooled[rows])


def cat(*parts: Condition) -> Condition:
    """Conditions one after the other."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Condition(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


@torch.no_grad()
def conditions(pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
    """What the pipeline itself makes of prompts, one of them at a time being enough for any memory.

    Args:
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        texts: Prompts.
        clip_skip: As the pipeline takes it.
    """
    if clip_skip is not None and not hasattr(pipe, "text_encoder_2"):
        # The pipelines' own `clip_skip` looks for the final norm where transformers 5 no longer has it.
        return cat(*(Condition(encode(pipe, tokenise(pipe, text), clip_skip)) for text in texts))
    more = {"device": pipe.unet.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    more |= {} if clip_skip is None else {"clip_skip": clip_skip}
    found = []
    for text in texts:
        output = pipe.encode_prompt(text, **more)
        found.append(Condition(output[0], output[2] if len(output) > 2 else None))
    return cat(*found)


def unprompted(pipe: Any) -> Condition:
    """What the pipeline guides with where nothing is asked for `[1]`: the empty prompt, or the zeros of SDXL.

    Pipelines leave no layer out here, whatever their `clip_skip`.
    """
    empty = conditions(pipe, [""])
    if not pipe.config.get("force_zeros_for_empty_prompt", False):
        return empty
    return Condition(torch.zeros_like(empty.states), None if empty.pooled is None else torch.zeros_like(empty.pooled))


def predict(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
    """What the denoiser predicts `[n, c, h, w]` in float32, from latents of unit variance as `noised` makes them."""
    unet = pipe.unet
    more = {}
    if condition.pooled is not None:
        more["added_cond_kwargs"] = {"text_embeds": condition.pooled.to(unet.dtype), "time_ids": _time_ids(pipe, noisy)}
    states = condition.states.to(unet.dtype)
    output = unet(noisy.to(unet.dtype), times.to(noisy.device), encoder_hidden_states=states, **more).sample
    return torch.as_tensor(output).float()


def clean(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """x0 `[n, c, h, w]` that goes with a prediction: (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), or the same of v."""
    a = _alphas(pipe, times, noisy)
    if predicts_velocity(pipe):
        return a.sqrt() * noisy - (1 - a).sqrt() * predicted
    return (noisy - (1 - a).sqrt() * predicted) / a.sqrt()


def step_back(
    pipe: Any, noisy: torch.Tensor, times: torch.Tensor, before: torch.Tensor, predicted: torch.Tensor
) -> torch.Tensor:
    """One step of DDIM (eta 0; Song et al., arXiv 2010.02502, eq. 12) from `times` to the earlier `before` `[n]`.

    A negative `before` stands for the end, where there is no noise.
    """
    a = _alphas(pipe, times, noisy)
    picture = clean(pipe, noisy, times, predicted)
    noise = (noisy - a.sqrt() * picture) / (1 - a).sqrt()
    b = torch.where(before.view(-1, 1, 1, 1).to(noisy.device) < 0, 1.0, _alphas(pipe, before.clamp(min=0), noisy))
    return b.sqrt() * picture + (1 - b).sqrt() * noise


def time_grid(pipe: Any, steps: int) -> list[int]:
    """`steps` time steps from noisy to clean, evenly spread: 981, 961, ..., 1 for 50 of 1000."""
    total = pipe.scheduler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"expected steps from 1 to {total}, got {steps}")
    return [min(total - 1, number * (total // steps) + 1) for number in reversed(range(steps))]


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
        asked, nothing = predict(pipe, noisy.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
        conditional.append(asked)
        unconditional.append(nothing)
    return replace(bank, conditional=torch.cat(conditional), empty=torch.cat(unconditional))


@dataclass(frozen=True)
class Way:
    """How pictures are drawn for a bank.

    Args:
        steps: Steps of DDIM.
        guidance: Guidance scale.
        batch: Pictures drawn together.
    """

    steps: int = 50
    guidance: float = 3.0
    batch: int = 8


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
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        condition: Of the prompts `[prompts]`.
        empty: Of the empty prompt `[1]`.
        way: How they are drawn.
        rounds: Pictures of each prompt.
        generator: Draws the noise.
        advance: Told of every picture.
    """
    order = torch.arange(len(condition.states)).repeat(rounds)
    shape = latent_shape(pipe)
    parts = []
    for index in order.split(way.batch):
        noise = gaussian(torch.empty(len(index), *shape, device=pipe.unet.device), generator)
        parts.append(_walk(pipe, condition.rows(index), empty, index, noise, way))
        advance(len(index))
    fields = LatentBank.__dataclass_fields__
    return LatentBank(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})


def draw_pictures(
    pipe: Any,
    condition: Condition,
    empty: Condition,
    way: Way,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """x_0 `[n, c, h, w]`, one for each row of the condition; arguments as for `sample_bank`."""
    parts = []
    for index in torch.arange(len(condition.states)).split(way.batch):
        noise = gaussian(torch.empty(len(index), *latent_shape(pipe), device=pipe.unet.device), generator)
        parts.append(_walk(pipe, condition.rows(index), empty, index, noise, way).pictures)
        advance(len(index))
    return torch.cat(parts)


@torch.no_grad()
def _walk(
    pipe: Any, condition: Condition, empty: Condition, index: torch.Tensor, latents: torch.Tensor, way: Way
) -> LatentBank:
    met: dict[str, list[torch.Tensor]] = {name: [] for name in ("latents", "times", "conditional", "empty")}
    grid = time_grid(pipe, way.steps)
    nothing = empty.rows(torch.zeros(len(latents), dtype=torch.long))
    for time, before in zip(grid, [*grid[1:], -1], strict=True):
        times = torch.full((len(latents),), time, device=latents.device)
        both = predict(pipe, latents.repeat(2, 1, 1, 1), times.repeat(2), cat(condition, nothing))
        conditional, unconditional = both.chunk(2)
        for name, value in zip(met, (latents, times, conditional, unconditional), strict=True):
            met[name].append(value)
        guided = unconditional + way.guidance * (conditional - unconditional)
        latents = step_back(pipe, latents, times, torch.full_like(times, before), guided)
    kept = {name: torch.cat(values) for name, values in met.items()}
    return LatentBank(**kept, prompts=index.repeat(way.steps), pictures=latents, prompts_of_pictures=index)


def noise_again(
    pipe: Any, pictures: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_t, t, what a perfect denoiser predicts) of pictures x_0 `[n, c, h, w]`, at random times with fresh noise."""
    times = picks(pipe.scheduler.config.num_train_timesteps, len(pictures), generator).to(pictures.device)
    noise = gaussian(pictures, generator)
    return noised(pipe, pictures, times, noise), times, target_of(pipe, pictures, times, noise)


def picks(below: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random whole numbers below `below`, on the CPU."""
    return torch.randint(below, (count,), generator=generator, device=generator.device).cpu()


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the latents of a picture of the model's own size."""
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(pipe.unet.config.in_channels), int(height), int(width)


def _time_ids(pipe: Any, noisy: torch.Tensor) -> torch.Tensor:
    """SDXL's sizes `[n, 6]`: a picture of the model's own size, not cropped."""
    side = int(noisy.shape[-1] * pipe.vae_scale_factor), int(noisy.shape[-2] * pipe.vae_scale_factor)
    width = getattr(getattr(pipe, "text_encoder_2", None), "config", None)
    dim = None if width is None else int(width.projection_dim)
    more = {"dtype": pipe.unet.dtype, "text_encoder_projection_dim": dim}
    if "aesthetic_score" in inspect.signature(pipe._get_add_time_ids).parameters:
        # Pipelines that draw from pictures return a pair, with the ids of the negative prompt behind.
        called = inspect.signature(type(pipe).__call__).parameters
        more |= {name: called[name].default for name in ("aesthetic_score", "negative_aesthetic_score")}
        more |= {"negative_original_size": side[::-1], "negative_target_size": side[::-1]}
        more |= {"negative_crops_coords_top_left": (0, 0)}
    ids = pipe._get_add_time_ids(side[::-1], (0, 0), side[::-1], **more)
    ids = ids[0] if isinstance(ids, tuple) else ids
    return torch.as_tensor(ids).to(noisy.device).expand(len(noisy), -1)


def _alphas(pipe: Any, times: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    alphas = pipe.scheduler.alphas_cumprod.to(like.device)[times.to(like.device)]
    return torch.as_tensor(alphas).view(-1, 1, 1, 1).to(like.dtype)
