"""Noise: how much of it there is at which time, put into latents and taken out of them.

There are two kinds of schedules. Those of alphas count times in steps: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. Flows
count them in 1000 sigma: x_t = (1 - sigma) x_0 + sigma noise. Latents have unit variance. What depends on the kind of
schedule or of prediction stands here and nowhere else.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import shift_factor
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.draws import chances, gaussian, picks


def noised(pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents with noise `[n, c, ...]`, at times `[n]`.

    That is what the denoiser reads under any scheduler of this noise schedule: those of alphas that count in sigmas
    scale theirs (`scale_model_input`) to the same before they call it.
    """
    signal, spread = _scales(pipe, times, latents)
    return signal * latents + spread * noise


def target_of(pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser predicts `[n, c, ...]` of latents with that noise: the noise, or the velocity.

    v = sqrt(a_t) noise - sqrt(1 - a_t) z_0 (Salimans and Ho, arXiv 2202.00512, appendix D); the velocity of a flow is
    noise - z_0 (Lipman et al., arXiv 2210.02747, for straight paths). Arguments as for `noised`.
    """
    if flows(pipe):
        return noise - latents
    if not predicts_velocity(pipe):
        return noise
    signal, spread = _scales(pipe, times, latents)
    return signal * noise - spread * latents


def clean(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """x0 `[n, c, ...]` that goes with a prediction: (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), or that of velocities."""
    signal, spread = _scales(pipe, times, noisy)
    if flows(pipe):
        return noisy - spread * predicted
    if predicts_velocity(pipe):
        return signal * noisy - spread * predicted
    return (noisy - spread * predicted) / signal


def step_back(
    pipe: Any, noisy: torch.Tensor, times: torch.Tensor, before: torch.Tensor, predicted: torch.Tensor
) -> torch.Tensor:
    """One step from `times` to the earlier `before` `[n]`: of DDIM (eta 0; Song et al., arXiv 2010.02502, eq. 12), or
    of Euler along a flow.

    A negative `before` stands for the end, where there is no noise.
    """
    signal, spread = _scales(pipe, times, noisy)
    if flows(pipe):
        return noisy + (_scales(pipe, before.clamp(min=0), noisy)[1] - spread) * predicted
    picture = clean(pipe, noisy, times, predicted)
    noise = (noisy - signal * picture) / spread
    end = _beside(before, noisy) < 0
    signal, spread = _scales(pipe, before.clamp(min=0), noisy)
    return torch.where(end, 1.0, signal) * picture + torch.where(end, 0.0, spread) * noise


def ancestral(
    pipe: Any, noisy: torch.Tensor, times: torch.Tensor, before: torch.Tensor, predicted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[n, c, ...]` and deviation `[n, 1, ...]` of a step with noise from `times` to the earlier `before` `[n]`.

    That is DDIM with eta 1 (arXiv 2010.02502, equations 12 and 16), of a schedule of alphas: its variance is
    (1 - a') / (1 - a) (1 - a / a'), and its mean sqrt(a') x_0 + sqrt(1 - a' - variance) eps.
    """
    signal, spread = _scales(pipe, times, noisy)
    picture = clean(pipe, noisy, times, predicted)
    noise = (noisy - signal * picture) / spread
    own, rest = _scales(pipe, before, noisy)
    sigma = rest / spread * (1 - (signal / own).square()).sqrt()
    return own * picture + (rest.square() - sigma.square()).clamp(min=0).sqrt() * noise, sigma


def renoised(
    pipe: Any, earlier: torch.Tensor, before: torch.Tensor, times: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[n, c, ...]` and deviation `[n, 1, ...]` of what is at `times`, of latents at the earlier `before` `[n]`.

    The forward process of a schedule of alphas: sqrt(a / a') x and sqrt(1 - a / a').
    """
    ratio = _scales(pipe, times, earlier)[0] / _scales(pipe, before, earlier)[0]
    return ratio * earlier, (1 - ratio.square()).sqrt()


def flows(pipe: Any) -> bool:
    """Whether the pipeline follows a flow from noise to pictures, and not a schedule of alphas."""
    config = pipe.scheduler.config
    flow = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    return bool(flow or type(pipe.scheduler).__name__.startswith("FlowMatch"))


def predicts_velocity(pipe: Any) -> bool:
    """Whether the denoiser of a schedule of alphas predicts v, not the noise."""
    return bool(pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction")


def total_times(pipe: Any) -> int:
    """How many times there are: 0, almost without noise, to the one before, almost nothing else."""
    return int(pipe.scheduler.config.num_train_timesteps)


def random_times(
    pipe: Any, count: int, generator: torch.Generator, shape: tuple[int, ...] | None = None
) -> torch.Tensor:
    """`count` times, drawn uniformly, on the CPU.

    In a flow they are uniform among those that the pipeline's sampler visits, which are moved to more noise the larger
    the picture (Esser et al., arXiv 2403.03206, section 5.3.2).

    Args:
        pipe: A pipeline of a supported family.
        count: How many.
        generator: Draws them.
        shape: Of the latents `[c, ..., h, w]`; None: those of the model's own size.
    """
    if not flows(pipe):
        return picks(total_times(pipe), count, generator)
    return total_times(pipe) * _moved(pipe, chances((count,), generator), shape)


def middle_times(pipe: Any, count: int, shape: tuple[int, ...] | None = None) -> list[int] | list[float]:
    """The middles of `count` equal parts of all times: 10, ..., 990 for 50 of 1000; `shape` as for `random_times`."""
    if not flows(pipe):
        return [(2 * number + 1) * total_times(pipe) // (2 * count) for number in range(count)]
    middles = (2 * torch.arange(count) + 1) / (2 * count)
    return [float(time) for time in total_times(pipe) * _moved(pipe, middles, shape)]


def time_grid(pipe: Any, steps: int, shape: tuple[int, ...] | None = None) -> list[int] | list[float]:
    """`steps` times from noisy to clean: evenly spread, 981, 961, ..., 1 for 50 of 1000, or those of a flow's sampler.

    `shape` as for `random_times`.
    """
    total = total_times(pipe)
    if not 1 <= steps <= total:
        raise ValueError(f"expected steps from 1 to {total}, got {steps}")
    if flows(pipe):
        return [total * float(sigma) for sigma in sampler(pipe, steps, shape).sigmas[:steps]]
    return [min(total - 1, number * (total // steps) + 1) for number in reversed(range(steps))]


def sampler(pipe: Any, steps: int, shape: tuple[int, ...] | None = None) -> Any:
    """A copy of the pipeline's scheduler, with times set as the pipeline does; `shape` as for `random_times`."""
    scheduler, adaptor = deepcopy(pipe.scheduler), adaptor_of(pipe)
    adaptor.set_times(pipe, scheduler, steps, shape or adaptor.shape(pipe))
    return scheduler


def noise_again(
    pipe: Any, pictures: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_t, t, what a perfect denoiser predicts) of pictures x_0 `[n, c, h, w]`, at random times with fresh noise."""
    times = random_times(pipe, len(pictures), generator, tuple(pictures.shape[1:])).to(pictures.device)
    noise = gaussian(pictures, generator)
    return noised(pipe, pictures, times, noise), times, target_of(pipe, pictures, times, noise)


def _scales(pipe: Any, times: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the picture and the noise are multiplied with, as `[n, 1, ...]`."""
    if flows(pipe):
        spread = _beside(times, like).to(like.dtype) / total_times(pipe)
        return 1 - spread, spread
    alphas = _beside(pipe.scheduler.alphas_cumprod.to(like.device)[times.to(like.device)], like)
    return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def _beside(values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Values `[n]` as `[n, 1, ...]`, for latents of any number of dimensions."""
    return values.to(latents.device).view(-1, *[1] * (latents.dim() - 1))


def _moved(pipe: Any, sigmas: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """Sigmas moved as the scheduler moves those of its samplers: s sigma / (1 + (s - 1) sigma), and no lower than its
    terminal one.
    """
    config, adaptor = pipe.scheduler.config, adaptor_of(pipe)
    shift = shift_factor(config, adaptor.shift(pipe, shape or adaptor.shape(pipe)))
    moved, terminal = shift * sigmas / (1 + (shift - 1) * sigmas), float(config.get("shift_terminal") or 0.0)
    return terminal + (1 - terminal) * moved
